"""The Celery task, and what happens to its message until it is acknowledged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery
from celery.exceptions import Reject

from textmatch.queue import messages
from textmatch.queue.dead_letters import DeadLetter, DeadLetters, of_document, of_raw
from textmatch.queue.messages import MalformedMessage, RefusedEntry
from textmatch.queue.pending import Pending
from workers import metrics
from workers.background import BackgroundLoop
from workers.gathering import Gathering
from workers.indexing import Result
from workers.leases import Leases
from workers.persistence import AcceptedDocument, PatienceLost, PersistentIndexer

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0


class MessageHandler:
    """Handles one message at a time and any number of them together; lives in the background loop."""

    def __init__(
        self,
        indexer: PersistentIndexer,
        gathering: Gathering,
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
            except (PatienceLost, TimeoutError) as error:
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


def register(app: Celery, handler: MessageHandler, background: BackgroundLoop) -> None:
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
