"""Making one batch of small messages that wait together.

A batch starts as soon as the worker is free, with all that has come by then and fits: alone when there is
little to do, and full when there is much. Every message is settled with its batch, or put back with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from textmatch.runtime.tracing import consuming
from workers.retrying_indexer import AcceptedDocument, RetryingIndexer

_MAX_DOCUMENTS = 64
_MAX_BYTES = 256 * 1024


@dataclass(frozen=True, eq=False)
class Message:
    """The documents of a message, and who waits for them."""

    documents: tuple[AcceptedDocument, ...]
    size_bytes: int
    traceparent: str = ""
    settled: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class MicroBatcher:
    """Settles messages in up to `batches` batches at a time, in the order in which they came."""

    def __init__(self, indexer: RetryingIndexer, batches: int) -> None:
        self._indexer = indexer
        self._batches = batches
        self._waiting: deque[Message] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def settle(
        self, documents: tuple[AcceptedDocument, ...], size_bytes: int, traceparent: str = ""
    ) -> None:
        """Settle every document.

        Args:
            traceparent: the trace that goes on here, as W3C writes it; empty if there is none.

        Raises:
            PatienceLost: some are not settled.
        """
        message = Message(documents, size_bytes, traceparent)
        self._waiting.append(message)
        self._start()
        await message.settled

    async def close(self) -> None:
        """Cancel what runs; nobody must wait for it any more."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _start(self) -> None:
        while len(self._running) < self._batches and (batch := self._next_batch()):
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    def _next_batch(self) -> list[Message]:
        batch: list[Message] = []
        documents = size_bytes = 0
        while self._waiting:
            message = self._waiting[0]
            documents += len(message.documents)
            size_bytes += message.size_bytes
            if batch and (documents > _MAX_DOCUMENTS or size_bytes > _MAX_BYTES):
                break
            self._waiting.popleft()
            # Nobody waits any more for what was put back when the process stops.
            if not message.settled.done():
                batch.append(message)
        return batch

    async def _run(self, batch: list[Message]) -> None:
        documents = [document for message in batch for document in message.documents]
        try:
            with consuming("index_documents", [message.traceparent for message in batch]):
                await self._indexer.settle(documents)
        except Exception as error:  # noqa: BLE001 -- whoever waits decides
            for message in _awaited(batch):
                message.settled.set_exception(error)
        else:
            for message in _awaited(batch):
                message.settled.set_result(None)


def _awaited(batch: list[Message]) -> list[Message]:
    return [message for message in batch if not message.settled.done()]
