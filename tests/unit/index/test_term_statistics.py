"""How often terms occur, and when that is read again."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from textmatch.errors import DependencyUnavailable
from textmatch.index import term_statistics
from textmatch.index.term_statistics import MAX_IDF, UNKNOWN, TermStatistics, TermStatisticsCache

FOUR = [np.array(one, dtype=np.uint32) for one in ([7, 2**32 - 1], [7], [7, 9], [])]


def test_idf_by_hand():
    statistics = TermStatistics.of(FOUR)
    assert statistics.document_count == 4
    expected = [np.log(1 + (4 - count + 0.5) / (count + 0.5)) for count in (3, 1, 1, 0)]
    assert statistics.idf([7, 9, 2**32 - 1, 8]) == pytest.approx(expected)


def test_without_documents_every_term_counts_alike():
    for statistics in (UNKNOWN, TermStatistics.of([])):
        assert statistics.idf([1, 2, 3]).tolist() == [1.0, 1.0, 1.0]
    empty = TermStatistics.of([np.zeros(0, np.uint32)])
    assert empty.idf([1, 2]) == pytest.approx([np.log(4)] * 2)


def test_rare_terms_count_alike_however_large_the_collection_is():
    common = [np.array([1], dtype=np.uint32)] * 5_000
    statistics = TermStatistics.of([*common, np.array([2], dtype=np.uint32)])
    assert statistics.idf([2, 3]).tolist() == [MAX_IDF, MAX_IDF]
    assert 0 < statistics.idf([1])[0] < 0.01


class ScriptedReads:
    """Reads `count` documents after `seconds`, or fails."""

    def __init__(self, count: int = 1, seconds: float = 0.0) -> None:
        self.count, self.seconds, self.reads = count, seconds, 0
        self.error: Exception | None = None

    async def __call__(self, collection: str) -> TermStatistics:
        self.reads += 1
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        return TermStatistics.of([np.array([7], dtype=np.uint32)] * self.count)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(term_statistics, "_FIRST_REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(term_statistics, "_FAILED_REFRESH_SECONDS", 0.01)


async def test_the_first_read_is_waited_for_and_kept():
    read = ScriptedReads(count=3)
    cache = TermStatisticsCache(read)
    for _ in range(3):
        assert (await cache.get("one", 1.0)).document_count == 3
    assert read.reads == 1
    assert (await cache.get("other", 1.0)).document_count == 3
    assert read.reads == 2


async def test_a_slow_first_read_costs_no_more_than_the_timeout():
    read = ScriptedReads(seconds=0.2)
    cache = TermStatisticsCache(read)
    started = time.monotonic()
    assert await cache.get("one", 0.02) is UNKNOWN
    assert time.monotonic() - started < 0.15
    await asyncio.sleep(0.3)
    assert (await cache.get("one", 0.0)).document_count == 1
    assert read.reads == 1
    cache.close()


async def test_a_caller_that_goes_away_does_not_stop_the_read():
    read = ScriptedReads(seconds=0.05)
    cache = TermStatisticsCache(read)
    call = asyncio.create_task(cache.get("one", 1.0))
    await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.sleep(0.1)
    assert (await cache.get("one", 0.0)).document_count == 1


async def test_old_statistics_answer_while_new_ones_are_read():
    read = ScriptedReads()
    cache = TermStatisticsCache(read)
    await cache.get("one", 1.0)
    read.count, read.seconds = 5, 0.02
    await asyncio.sleep(0.06)
    assert (await cache.get("one", 1.0)).document_count == 1
    await asyncio.sleep(0.04)
    assert (await cache.get("one", 1.0)).document_count == 5
    cache.close()


async def test_the_same_size_is_read_more_and_more_rarely_and_a_new_size_soon():
    read = ScriptedReads(count=100)
    cache = TermStatisticsCache(read)
    ended = time.monotonic() + 0.5
    while time.monotonic() < ended:
        await cache.get("one", 1.0)
        await asyncio.sleep(0.005)
    assert 3 <= read.reads <= 5
    read.count = 150
    await asyncio.sleep(0.45)
    for _ in range(2):
        await cache.get("one", 1.0)
        await asyncio.sleep(0.08)
    reads = read.reads
    await cache.get("one", 1.0)
    await asyncio.sleep(0.01)
    assert read.reads > reads - 1
    cache.close()


async def test_errors_are_tried_again_and_keep_what_is_known():
    read = ScriptedReads()
    read.error = DependencyUnavailable("gone")
    cache = TermStatisticsCache(read)
    assert await cache.get("one", 1.0) is UNKNOWN
    read.error = None
    await asyncio.sleep(0.02)
    assert (await cache.get("one", 1.0)).document_count == 1
    read.error = DependencyUnavailable("gone")
    await asyncio.sleep(0.06)
    assert (await cache.get("one", 1.0)).document_count == 1
    cache.close()
