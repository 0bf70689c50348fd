"""Two callers at the same queue: neither waits for, or is refused for, all that the other has there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest

from services.encoder.batching import CallContext, EngineTask, Job
from services.encoder.scheduler import Item, Scheduler
from tests.support.length_model import LengthModel
from textmatch.errors import DeadlineTooShort, Overloaded

MakeJob = Callable[..., Job]


def _tokens(batch: Sequence[Item]) -> list[int]:
    return [item.tokens for item in batch]


def _urgency(caller: str, deadline: float | None = None) -> CallContext:
    return CallContext(caller, is_bulk=False, deadline=deadline)


async def test_a_small_call_waits_for_a_turn_of_a_huge_one_and_no_longer(
    waiting: Scheduler, make_job: MakeJob
):
    waiting.add(make_job(*[20] * 40, caller="huge"))
    waiting.take()
    waiting.add(make_job(21, 22, caller="small"))
    assert {21, 22} <= set(_tokens(waiting.take()))


async def test_a_text_unlike_those_of_a_huge_call_is_not_passed_over(waiting: Scheduler, make_job: MakeJob):
    waiting.add(make_job(*[10] * 600, caller="huge"))
    waiting.take()
    waiting.add(make_job(90, caller="small"))
    assert [90] in [_tokens(waiting.take()) for _ in range(3)]


async def test_a_model_does_not_wait_for_all_the_work_of_another(waiting: Scheduler, make_job: MakeJob):
    waiting.add(make_job(*[90] * 5, caller="huge"))
    waiting.take()
    waiting.add(make_job(10, caller="small", model=LengthModel("other").engine_model))
    assert [10] in (_tokens(waiting.take()), _tokens(waiting.take()))


async def test_a_caller_is_not_refused_for_what_goes_behind_it(waiting: Scheduler, make_job: MakeJob):
    waiting.note_speed(tokens=100, seconds=1.0)
    waiting.add(make_job(*[90] * 10, caller="huge"))
    soon = time.monotonic() + 3.0
    with waiting.admitted(20, _urgency("small", deadline=soon)):
        pass
    with (
        pytest.raises(DeadlineTooShort, match=r"9\.00 s"),
        waiting.admitted(20, _urgency("huge", deadline=soon)),
    ):
        pass


async def test_the_limit_leaves_room_for_other_callers(waiting: Scheduler, make_job: MakeJob):
    waiting.add(make_job(*[100] * 10, caller="huge"))
    with pytest.raises(Overloaded), waiting.admitted(1, _urgency("huge")):
        pass
    with pytest.raises(Overloaded), waiting.admitted(501, _urgency("second")):
        pass
    waiting.add(make_job(*[100] * 5, caller="second"))
    waiting.add(make_job(*[100] * 3, caller="third"))
    with waiting.admitted(200, _urgency("fourth")):
        pass
    with pytest.raises(Overloaded), waiting.admitted(201, _urgency("fourth")):
        pass


async def test_callers_are_forgotten_when_nothing_of_theirs_waits(waiting: Scheduler, make_job: MakeJob):
    cancelled = make_job(10, caller="cancelled")
    waiting.add(cancelled)
    waiting.discard(cancelled)
    waiting.add(make_job(10, caller="late", deadline=time.monotonic() - 1))
    for number in range(100):
        with waiting.admitted(10, _urgency(str(number))):
            waiting.add(make_job(10, caller=str(number)))
        waiting.take()
    waiting.add_errand(EngineTask(lambda: 1.0))
    waiting.take()
    lane = waiting._interactive
    assert (lane._tokens_of_caller, lane._queues, lane.tokens) == ({}, {}, 0)
