"""How frequent terms are in a collection: the statistics behind the idf of BM25.

    statistics = await cache.get(collection, timeout_seconds=0.1)
    statistics.idf([0x3A127C87])  ->  array([4.2])

Frequencies are counted in a sample: the first documents in the order of their point ids. Point ids are hashes
of document ids, so the sample is random, and every matcher draws the same one. Qdrant's own idf is not used:
it is counted shard by shard, so the same pair would have another score on a cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from textmatch.errors import TextMatchError

TermIndices = NDArray[np.uint32]

SAMPLE_DOCUMENTS = 20_000
# Terms of fewer than one in a thousand documents count alike. Otherwise scores change as a collection grows.
MAX_IDF = float(np.log1p(1_000.0))

_FIRST_REFRESH_SECONDS = 2.0
_LAST_REFRESH_SECONDS = 300.0
_FAILED_REFRESH_SECONDS = 1.0
# The next refresh comes soon if the sample has grown or shrunk by more than this share.
_CHANGED_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class TermStatistics:
    """The document frequencies of terms in a sample.

    Attributes:
        document_count: the size of the sample; 0 if nothing is known, and then every term counts alike.
        indices: the terms of the sample, ascending: (terms,).
        frequencies: in how many documents of the sample each term occurs: (terms,).
    """

    document_count: int = 0
    indices: TermIndices = field(default_factory=lambda: np.zeros(0, np.uint32))
    frequencies: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, documents: Iterable[TermIndices]) -> TermStatistics:
        """Count the distinct term indices (terms,) of each document."""
        listed = list(documents)
        if not listed:
            return cls()
        indices, frequencies = np.unique(np.concatenate(listed), return_counts=True)
        return cls(len(listed), indices.astype(np.uint32), frequencies.astype(np.int64))

    def idf(self, indices: Sequence[int]) -> NDArray[np.float64]:
        """The inverse document frequency of each term, above 0 and at most MAX_IDF: (count,).

        Terms that the sample lacks have the highest value of the collection.
        """
        if not self.document_count:
            return np.ones(len(indices))
        wanted = np.asarray(indices, dtype=np.uint32)
        places = np.searchsorted(self.indices, wanted).clip(max=max(len(self.indices) - 1, 0))
        frequencies = np.zeros(len(wanted))
        if len(self.indices):
            frequencies = np.where(self.indices[places] == wanted, self.frequencies[places], 0.0)
        rarity = np.log1p((self.document_count - frequencies + 0.5) / (frequencies + 0.5))
        return np.minimum(rarity, MAX_IDF)


UNKNOWN = TermStatistics()


@dataclass
class _Entry:
    statistics: TermStatistics | None = None
    due_at: float = 0.0
    interval_seconds: float = _FIRST_REFRESH_SECONDS
    refresh: asyncio.Task[None] | None = None

    def update(self, statistics: TermStatistics) -> None:
        """Keep new statistics. The interval doubles while the sample keeps its size."""
        before = self.statistics.document_count if self.statistics else 0
        is_changed = abs(statistics.document_count - before) > _CHANGED_SHARE * before
        self.interval_seconds = (
            _FIRST_REFRESH_SECONDS
            if is_changed or not before
            else min(2 * self.interval_seconds, _LAST_REFRESH_SECONDS)
        )
        self.statistics = statistics


class TermStatisticsCache:
    """The statistics of each collection, refreshed in the background.

    Args:
        read: reads the statistics of a collection. It must raise TextMatchErrors only.
    """

    def __init__(self, read: Callable[[str], Awaitable[TermStatistics]]) -> None:
        self._read = read
        self._entries: dict[str, _Entry] = {}

    async def get(self, collection: str, timeout_seconds: float) -> TermStatistics:
        """The statistics of a collection. Waits only for the first ones, and no longer than the timeout.

        Returns:
            `UNKNOWN` if there are none in time.
        """
        entry = self._entries.setdefault(collection, _Entry())
        if entry.refresh is None and time.monotonic() >= entry.due_at:
            entry.refresh = asyncio.create_task(self._refresh(collection, entry))
        if entry.statistics is None and entry.refresh is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await asyncio.shield(entry.refresh)
        return entry.statistics or UNKNOWN

    def close(self) -> None:
        """Drop all statistics and stop their refreshes."""
        entries, self._entries = self._entries, {}
        for entry in entries.values():
            if entry.refresh is not None:
                entry.refresh.cancel()

    async def _refresh(self, collection: str, entry: _Entry) -> None:
        wait_seconds = _FAILED_REFRESH_SECONDS
        try:
            entry.update(await self._read(collection))
            wait_seconds = entry.interval_seconds
        except TextMatchError:
            # The query itself meets the error, too.
            pass
        finally:
            entry.due_at = time.monotonic() + wait_seconds
            entry.refresh = None
