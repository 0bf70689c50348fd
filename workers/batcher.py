"""Combine small messages that wait at the same time into one batch.

A batch starts as soon as the worker is free, with all waiting messages that fit: one message under light
load, a full batch under heavy load. A batch has messages of one collection, which are settled together, or go
back to the queue together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from textmatch.runtime import logs
from textmatch.runtime.tracing import consuming
from workers.indexer import IndexerDependencies
from workers.retrying_indexer import AcceptedDocument, RetryingIndexer

_MAX_DOCUMENTS = 64
_MAX_BYTES = 256 * 1024


@dataclass(frozen=True, eq=False)
class QueuedMessage:
    """The documents of a message; `settled` resolves once they are settled or the batch has failed."""

    deps: IndexerDependencies
    documents: tuple[AcceptedDocument, ...]
    size_bytes: int
    traceparent: str = ""
    settled: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class MicroBatcher:
    """Settles messages in up to `batches` concurrent batches, in the order in which they came."""

    def __init__(self, indexer: RetryingIndexer, batches: int) -> None:
        self._indexer = indexer
        self._batches = batches
        self._waiting: deque[QueuedMessage] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def settle(
        self,
        documents: tuple[AcceptedDocument, ...],
        deps: IndexerDependencies,
        size_bytes: int,
        traceparent: str = "",
    ) -> None:
        """Settle every document of a message.

        Args:
            deps: those of the collection of the documents. Messages with the same ones are combined.
            traceparent: the W3C trace context to continue; empty if there is none.

        Raises:
            RetryBudgetExhausted: some are not settled.
        """
        message = QueuedMessage(deps, documents, size_bytes, traceparent)
        self._waiting.append(message)
        self._start()
        await message.settled

    async def close(self) -> None:
        """Cancel running batches. No caller of `settle` may wait for them."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _start(self) -> None:
        while len(self._running) < self._batches and (batch := self._next_batch()):
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    def _next_batch(self) -> list[QueuedMessage]:
        """The oldest message, and those of the same collection that fit into a batch with it."""
        batch: list[QueuedMessage] = []
        others: deque[QueuedMessage] = deque()
        documents = size_bytes = 0
        while self._waiting:
            message = self._waiting.popleft()
            # A stopping process has already put back messages whose future is done.
            if message.settled.done():
                continue
            if batch and message.deps is not batch[0].deps:
                others.append(message)
                continue
            documents += len(message.documents)
            size_bytes += message.size_bytes
            if batch and (documents > _MAX_DOCUMENTS or size_bytes > _MAX_BYTES):
                others.append(message)
                break
            batch.append(message)
        self._waiting.extendleft(reversed(others))
        return batch

    async def _run(self, batch: list[QueuedMessage]) -> None:
        documents = [document for message in batch for document in message.documents]
        failure: Exception | None = None
        try:
            deps = batch[0].deps
            logs.collection.set(deps.collection.name)
            traceparents = [message.traceparent for message in batch]
            with consuming("index_documents", traceparents, collection=deps.collection.name):
                await self._indexer.settle(documents, deps)
        except Exception as error:  # noqa: BLE001 -- raised again where the message is awaited
            failure = error
        for message in batch:
            if message.settled.done():
                continue
            if failure:
                message.settled.set_exception(failure)
            else:
                message.settled.set_result(None)
