"""Back-pressure: while the queue is full, callers of IngestDocuments are held instead of Redis being filled.

A request that is held keeps its stream from being read, so that gRPC's flow control slows its caller down.
Callers are let in one after another, first come first served. All matchers look at the same queue, and each
adds what it is just putting there, so that the limit is passed by at most one request of each matcher.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.matcher import metrics
from textmatch.documents import Document
from textmatch.errors import Overloaded
from textmatch.queue.backlog import Backlog, BacklogSize

_PAUSE_SECONDS = 0.1
_RETRY_SECONDS = 2.0
# How long before its own deadline a held caller is told: this, or this share of its time if that is less.
_MARGIN_SECONDS = 1.0
_MARGIN_SHARE = 0.25


@dataclass(frozen=True)
class QueueLimits:
    """From which size on the queue counts as full."""

    documents: int
    size_bytes: int


class Admission:
    """Who may put documents into the queue now."""

    def __init__(self, backlog: Backlog, limits: QueueLimits) -> None:
        self._backlog = backlog
        self._limits = limits
        self._turn = asyncio.Lock()
        self._entering_documents = 0
        self._entering_bytes = 0

    @asynccontextmanager
    async def entry(self, documents: Sequence[Document], deadline: float | None) -> AsyncIterator[None]:
        """Wait until there is room; in the block, put these documents into the queue.

        Args:
            deadline: of the caller, on the monotonic clock; None if it has none.

        Raises:
            Overloaded: there is none in time.
            DependencyUnavailable: Redis does not answer.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout_at(_last_moment(deadline)), self._turn:
                await self._room()
                size_bytes = sum(len(document.text.encode()) for document in documents)
                self._entering_documents += len(documents)
                self._entering_bytes += size_bytes
        except TimeoutError:
            raise self._full() from None
        finally:
            _report(time.monotonic() - started)
        try:
            yield
        finally:
            self._entering_documents -= len(documents)
            self._entering_bytes -= size_bytes

    async def _room(self) -> None:
        while not self._fits(await self._backlog.measure()):  # noqa: ASYNC110 -- Redis tells nobody
            await asyncio.sleep(_PAUSE_SECONDS)

    def _fits(self, waiting: BacklogSize) -> bool:
        return (
            waiting.documents + self._entering_documents < self._limits.documents
            and waiting.size_bytes + self._entering_bytes < self._limits.size_bytes
        )

    def _full(self) -> Overloaded:
        limits = f"{self._limits.documents:,} documents or {self._limits.size_bytes:,} bytes"
        return Overloaded(f"the ingest queue is full, it holds {limits}", retry_delay_seconds=_RETRY_SECONDS)


def _report(held_seconds: float) -> None:
    if held_seconds >= _PAUSE_SECONDS:
        metrics.INGEST_HELD_SECONDS.observe(held_seconds)


def _last_moment(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    remaining_seconds = max(0.0, deadline - time.monotonic())
    return deadline - min(_MARGIN_SECONDS, _MARGIN_SHARE * remaining_seconds)
