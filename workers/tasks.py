"""The Celery task, and what happens to its message until it is acknowledged.

Telling Redis that messages are still being worked on, so that no other worker is given them.

One event loop in a thread of its own, for the worker's threads to hand coroutines to.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from celery import Celery
from celery.exceptions import Reject
from redis.asyncio import Redis

from textmatch.errors import DependencyUnavailable
from textmatch.queue import messages, transport
from textmatch.queue.dead_letters import DeadLetter, DeadLetters, of_document, of_raw
from textmatch.queue.messages import MalformedMessage, RefusedEntry
from textmatch.queue.pending import Pending
from textmatch.queue.redis_client import translated_errors
from workers import metrics
from workers.batcher import MicroBatcher
from workers.indexer import Result
from workers.retrying_indexer import AcceptedDocument, RetryBudgetExhausted, RetryingIndexer

_log = logging.getLogger(__name__)


class Leases:
    """The messages that this process holds.

    With leases the visibility timeout bounds how long the death of a worker goes unnoticed, not how long a
    message may take: a slow encoder never makes a batch run twice, and still its messages are not long in
    coming back.
    """

    def __init__(self, redis: Redis, visibility_timeout_seconds: float) -> None:
        self._renewal = redis.register_script(transport.RENEW.script)
        # Two renewals may fail before the message is given away.
        self._renewal_seconds = visibility_timeout_seconds / 3
        self._delivery_tags: set[str] = set()

    @contextmanager
    def hold(self, delivery_tag: str) -> Iterator[None]:
        """Keep this message for as long as the block runs."""
        self._delivery_tags.add(delivery_tag)
        try:
            yield
        finally:
            self._delivery_tags.discard(delivery_tag)

    async def renew_forever(self) -> None:
        """Renew all leases, again and again."""
        while True:
            await asyncio.sleep(self._renewal_seconds)
            try:
                await self._renew()
            except DependencyUnavailable as error:
                _log.warning("leases not renewed", extra={"error": str(error)})

    async def _renew(self) -> None:
        if not self._delivery_tags:
            return
        with translated_errors():
            await self._renewal(keys=transport.RENEW.keys, args=[time.time(), *self._delivery_tags])


Value = TypeVar("Value")


class EventLoopThread:
    """Runs from the start until `close`; clients made inside it may be shared by all threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Run a coroutine in the loop and wait for it; raises what it raises. Not for the loop's own
        thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the loop, soon. For any thread, and for signal handlers."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Stop the loop; nothing may be running in it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


_PAUSE_SECONDS = 1.0


class MessageHandler:
    """Handles one message at a time and any number of them together; lives in the background loop."""

    def __init__(
        self,
        indexer: RetryingIndexer,
        gathering: MicroBatcher,
        leases: Leases,
        dead_letters: DeadLetters,
        pending: Pending,
        drain_seconds: float,
    ) -> None:
        self._indexer = indexer
        self._gathering = gathering
        self._leases = leases
        self._dead_letters = dead_letters
        self._pending = pending
        self._drain_seconds = drain_seconds
        self._limits: set[asyncio.Timeout] = set()
        self._ends_at: float | None = None

    def stop(self) -> None:
        """Give running messages their last seconds; those that only wait end at once."""
        self._indexer.stop()
        self._ends_at = asyncio.get_running_loop().time() + self._drain_seconds
        for limit in self._limits:
            limit.reschedule(self._ends_at)

    async def handle(self, argument: str, delivery_tag: str) -> bool:
        """Handle the message of a task; says whether it is done with, else it must be put back."""
        with metrics.TASK_SECONDS.time(), self._leases.hold(delivery_tag):
            try:
                async with self._time_limit():
                    await self._handle(argument)
            except (RetryBudgetExhausted, TimeoutError) as error:
                _log.warning("message put back", extra={"error": str(error)})
                return False
            except Exception:  # noqa: BLE001 -- a bug here must not lose the message
                _log.exception("message put back")
                await asyncio.sleep(_PAUSE_SECONDS)
                return False
            return True

    async def _handle(self, argument: str) -> None:
        try:
            message = messages.decode(argument)
        except MalformedMessage as error:
            _log.warning("malformed message", extra={"error": str(error)})
            await self._dead_letters.add([of_raw(argument, str(error))])
            return
        await self._refuse(message.refused)
        if message.documents:
            accepted = tuple(AcceptedDocument(one, message.accepted_at) for one in message.documents)
            await self._gathering.settle(accepted, len(argument), message.traceparent)

    async def _refuse(self, entries: tuple[RefusedEntry, ...]) -> None:
        if not entries:
            return
        await self._dead_letters.add([_letter(entry) for entry in entries])
        await self._pending.clear(
            {entry.document.id: entry.document.version for entry in entries if entry.document}
        )
        metrics.DOCUMENTS_TOTAL.labels(Result.FAILED.value).inc(len(entries))

    @asynccontextmanager
    async def _time_limit(self) -> AsyncIterator[None]:
        """No limit until the process stops."""
        async with asyncio.timeout_at(self._ends_at) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)


def register(app: Celery, handler: MessageHandler, background: EventLoopThread) -> None:
    """Give the app its one task. It waits in a Celery thread for the handler in the background loop."""

    def index_documents(task: Any, argument: str) -> None:
        delivery_tag = task.request.properties["delivery_tag"]
        if not background.run(handler.handle(argument, delivery_tag)):
            # Moves the message to the end of the queue in one transaction.
            raise Reject("not settled", requeue=True)

    app.task(index_documents, name=messages.TASK_NAME, bind=True)


def _letter(entry: RefusedEntry) -> DeadLetter:
    if entry.document is None:
        return of_raw(entry.raw, entry.error)
    return of_document(entry.document, "INVALID_INPUT", entry.error)
