"""The Celery task, and the handling of its message until it is acknowledged.

Celery runs the task in a thread of its pool, which only waits. One event loop in a separate thread does the
work.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from celery import Celery
from celery.exceptions import Reject
from redis.asyncio import Redis

from textmatch.collection_store import Collection, CollectionStore
from textmatch.errors import CollectionNotFound, DependencyUnavailable, TextMatchError
from textmatch.queue import messages, transport
from textmatch.queue.dead_letters import DeadLetter, DeadLetters, of_argument, of_document
from textmatch.queue.keys import Keys
from textmatch.queue.messages import Envelope, MalformedMessage, RefusedEntry, Stamp
from textmatch.queue.redis_client import translated_errors
from workers import metrics
from workers.batcher import MicroBatcher
from workers.health import Progress
from workers.indexer import DocumentOutcome, IndexerDependencies
from workers.pauses import OperatorAwaited, Paused, RetryBudgetExhausted
from workers.retrying_indexer import OPERATOR_ERRORS, AcceptedDocument, RetryingIndexer

Value = TypeVar("Value")

_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


def register(app: Celery, handler: MessageHandler, loop: EventLoopThread) -> None:
    """Register the app's one task, which hands its argument to the handler."""

    def index_documents(task: Any, argument: str, stamp: dict[str, Any] | None = None) -> None:
        delivery_tag = task.request.properties["delivery_tag"]
        if not loop.run(handler.handle(argument, delivery_tag, stamp)):
            # Moves the message to the end of the queue in one transaction.
            raise Reject("not settled", requeue=True)

    app.task(index_documents, name=messages.TASK_NAME, bind=True)


class MessageHandler:
    """Handles messages, any number of them at the same time, in the event loop's thread.

    Args:
        make_dependencies: what indexing documents of a collection needs.
        unreadable: where messages that cannot be read are kept.
    """

    def __init__(
        self,
        store: CollectionStore,
        make_dependencies: Callable[[Collection], IndexerDependencies],
        indexer: RetryingIndexer,
        batcher: MicroBatcher,
        leases: Leases,
        unreadable: DeadLetters,
        drain_seconds: float,
        progress: Progress | None = None,
    ) -> None:
        self._store = store
        self._make_dependencies = make_dependencies
        # The same ones as long as a collection stays open, because batches are made by them.
        self._dependencies: WeakKeyDictionary[Collection, IndexerDependencies] = WeakKeyDictionary()
        self._indexer = indexer
        self._batcher = batcher
        self._leases = leases
        self._unreadable = unreadable
        self._drain_seconds = drain_seconds
        self._progress = progress or Progress()
        self._limits: set[asyncio.Timeout] = set()
        self._ends_at: float | None = None

    def stop(self) -> None:
        """End messages that wait for a retry now, and running ones after `drain_seconds` at the latest."""
        self._indexer.stop()
        self._ends_at = asyncio.get_running_loop().time() + self._drain_seconds
        for limit in self._limits:
            limit.reschedule(self._ends_at)

    def intake(self) -> int | None:
        """How many messages may be held now; None is no limit. May be called in any thread."""
        return self._indexer.pauses.intake()

    async def handle(self, argument: str, delivery_tag: str, stamp: Mapping[str, Any] | None = None) -> bool:
        """Handle the message of a task. True: it may be acknowledged; False: it must be put back."""
        with metrics.TASK_SECONDS.time(), self._leases.hold(delivery_tag), self._progress.holding():
            try:
                async with self._time_limit():
                    await self._handle(argument, messages.stamp_from_fields(stamp or {}))
            except (Paused, TextMatchError) as error:
                # A TextMatchError: Redis or Qdrant does not answer, and the collection is not known.
                _log.warning("message put back", extra={"error": str(error)})
                # Messages of other collections may be next. Those of this one must not come back at once.
                await asyncio.sleep(_PAUSE_SECONDS)
                return False
            except (RetryBudgetExhausted, TimeoutError) as error:
                _log.warning("message put back", extra={"error": str(error)})
                return False
            except Exception:  # noqa: BLE001 -- a bug here must not lose the message
                _log.exception("message put back")
                await asyncio.sleep(_PAUSE_SECONDS)
                return False
            return True

    async def _handle(self, argument: str, stamp: Stamp | None) -> None:
        try:
            message = messages.decode(argument, stamp)
        except MalformedMessage as error:
            _log.warning("malformed message", extra={"error": str(error)})
            await self._unreadable.add([of_argument(argument, stamp, str(error))])
            return
        collection = await self._find(message.envelope)
        if collection is None:
            count = len(message.documents) + len(message.refused)
            metrics.DOCUMENTS_TOTAL.labels(DocumentOutcome.DROPPED.value).inc(count)
            _log.warning("collection deleted", extra={"collection": message.envelope.collection})
            return
        if message.refused:
            await self._dead_letter(message.refused, collection)
        if message.documents:
            envelope = message.envelope
            accepted = tuple(AcceptedDocument(one, one.accepted_us / 1e6) for one in message.documents)
            if collection not in self._dependencies:
                self._dependencies[collection] = self._make_dependencies(collection)
            deps = self._dependencies[collection]
            await self._batcher.settle(accepted, deps, len(argument), envelope.traceparent)

    async def _find(self, envelope: Envelope) -> Collection | None:
        """The collection that a message is for; None if it was deleted, even if it was created again."""
        find = self._store.current if envelope.generation else self._store.for_write
        try:
            collection = await find(envelope.collection)
        except CollectionNotFound:
            return None
        except OPERATOR_ERRORS as error:
            with self._indexer.pauses.attempt(envelope.collection):
                raise OperatorAwaited(error) from error
        return collection if envelope.generation in ("", collection.config.generation) else None

    async def _dead_letter(self, entries: tuple[RefusedEntry, ...], collection: Collection) -> None:
        await collection.dead_letters.add([_letter(entry) for entry in entries])
        documents = [entry.document for entry in entries if entry.document]
        await collection.pending.clear({document.id: document.version for document in documents})
        metrics.DOCUMENTS_TOTAL.labels(DocumentOutcome.FAILED.value).inc(len(entries))

    @asynccontextmanager
    async def _time_limit(self) -> AsyncIterator[None]:
        """A time limit that starts when the process stops."""
        async with asyncio.timeout_at(self._ends_at) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)


def _letter(entry: RefusedEntry) -> DeadLetter:
    if entry.document is None:
        return of_argument(entry.raw, entry.stamp, entry.error)
    return of_document(entry.document, "INVALID_INPUT", entry.error)


class Leases:
    """Renews the leases of the messages that this process holds. No other worker gets them in the meantime.

    The visibility timeout therefore limits the time until a worker's death is noticed, not the time that a
    message may take. A slow encoder does not make a batch run twice.
    """

    def __init__(self, redis: Redis, keys: Keys, visibility_timeout_seconds: float) -> None:
        self._renewal = redis.register_script(transport.RENEW.script)
        self._keys = transport.RENEW.keys_of(keys)
        # Two renewals may fail before another worker gets the message.
        self._renewal_seconds = visibility_timeout_seconds / 3
        self._delivery_tags: set[str] = set()

    @contextmanager
    def hold(self, delivery_tag: str) -> Iterator[None]:
        """Keep this message while the block runs."""
        self._delivery_tags.add(delivery_tag)
        try:
            yield
        finally:
            self._delivery_tags.discard(delivery_tag)

    async def renew_forever(self) -> None:
        """Renew all leases until cancelled."""
        while True:
            await asyncio.sleep(self._renewal_seconds)
            if not self._delivery_tags:
                continue
            try:
                with translated_errors():
                    await self._renewal(keys=self._keys, args=list(self._delivery_tags))
            except DependencyUnavailable as error:
                _log.warning("leases not renewed", extra={"error": str(error)})


class EventLoopThread:
    """An event loop that runs in its own thread until `close`. All threads may share clients made in it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Run a coroutine and wait for its result or exception. Not for the loop's own thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Schedule a function in the loop. Safe in any thread and in signal handlers."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Stop the loop; nothing may be running in it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
