from __future__ import annotations

import asyncio
import time

import pytest

from services.matcher import deadlines
from services.matcher.deadlines import ScoringThroughput, SearchTime, TimeBudget
from textmatch.errors import DeadlinePassed

_TEXTS = ["x" * 100] * 100


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(deadlines.time, "monotonic", lambda: self.now)

    def budget(self, seconds: float) -> TimeBudget:
        return TimeBudget.until(self.now + seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("seconds", "reserve_seconds"), [(0.02, 0.01), (0.05, 0.01), (0.1, 0.015), (1.0, 0.15), (10.0, 0.25)]
)
def test_a_share_of_the_time_within_limits_is_kept_for_the_answer(
    clock: Clock, seconds: float, reserve_seconds: float
):
    budget = clock.budget(seconds)
    assert budget.deadline - budget.answer_by == pytest.approx(reserve_seconds)
    assert budget.seconds_left() == pytest.approx(seconds)


def test_the_fallback_leaves_time_for_three_quick_searches(clock: Clock):
    search_time = SearchTime()
    budget = clock.budget(0.05)
    assert budget.fallback_at(search_time) - clock.now == pytest.approx(0.05 - 0.01 - 3 * 0.0025)
    search_time.full_seconds = 0.02
    assert budget.fallback_at(search_time) - clock.now == pytest.approx(0.05 - 0.01 - 3 * 0.01)


def test_less_than_three_full_searches_is_tight(clock: Clock):
    budget = clock.budget(0.05)
    assert not budget.is_tight(SearchTime())
    clock.now += 0.026
    assert budget.is_tight(SearchTime())


def test_a_running_match_is_joined_if_it_ends_in_time_and_has_half_of_the_own_time(clock: Clock):
    own = clock.budget(1.0)
    joined = [own.may_join(clock.budget(seconds)) for seconds in (0.49, 0.51, 0.99, 1.01)]
    assert joined == [False, True, True, False]


async def test_an_answer_of_the_index_is_waited_for_until_the_deadline():
    budget = TimeBudget.until(time.monotonic() + 0.05)
    assert await budget.within_deadline(asyncio.sleep(0, "answer")) == "answer"
    with pytest.raises(DeadlinePassed, match="the index did not answer before the deadline"):
        await budget.within_deadline(asyncio.sleep(10))


def test_search_time_follows_full_and_quick_searches():
    search_time = SearchTime()
    assert (search_time.full_seconds, search_time.quick_seconds) == (0.005, 0.0025)
    for _ in range(100):
        search_time.observe(10, 0.05)
    assert search_time.full_seconds == pytest.approx(0.1, rel=0.01)
    for _ in range(100):
        search_time.observe(100, 0.02)
    assert search_time.full_seconds == pytest.approx(0.02, rel=0.01)
    search_time.observe(1_000, 9.0)
    assert search_time.full_seconds == pytest.approx(0.02, rel=0.01)


def test_chunks_follow_the_measured_throughput(clock: Clock):
    throughput = ScoringThroughput()
    assert throughput.next_chunk("q", _TEXTS, 0.0) == []
    assert len(throughput.next_chunk("q", _TEXTS, 1.0)) == 8
    assert len(throughput.next_chunk("q", _TEXTS, 2.0)) == 100
    throughput.observe("q", _TEXTS[:10], 0.1)
    assert len(throughput.next_chunk("q", _TEXTS, 1.01)) == 40
    # The smallest chunk may take all the time, the others 40 % of it.
    assert len(throughput.next_chunk("q", _TEXTS, 0.041)) == 4
    assert len(throughput.next_chunk("q", _TEXTS, 0.021)) == 2
    assert throughput.next_chunk("q", _TEXTS, 0.009) == []
    clock.now += 5.1
    assert len(throughput.next_chunk("q", _TEXTS, 0.009)) == 8


def test_a_late_chunk_counts_only_if_it_was_slower_than_known(clock: Clock):
    throughput = ScoringThroughput()
    throughput.observe("q", _TEXTS[:10], 0.1)
    throughput.observe_late("q", _TEXTS[:10], 0.05)
    assert len(throughput.next_chunk("q", _TEXTS, 1.01)) == 40
    throughput.observe_late("q", _TEXTS[:10], 1.0)
    assert len(throughput.next_chunk("q", _TEXTS, 1.01)) < 40
