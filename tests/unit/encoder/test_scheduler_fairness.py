"""Two callers in one lane: neither waits for, or is refused because of, all texts of the other."""

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


def _call(caller: str, deadline: float | None = None) -> CallContext:
    return CallContext(caller, is_bulk=False, deadline=deadline)


async def test_a_small_call_waits_for_one_quantum_of_a_huge_one(scheduler: Scheduler, make_job: MakeJob):
    scheduler.add(make_job(*[20] * 40, caller="huge"))
    scheduler.take()
    scheduler.add(make_job(21, 22, caller="small"))
    assert {21, 22} <= set(_tokens(scheduler.take()))


async def test_a_text_unlike_those_of_a_huge_call_is_not_passed_over(scheduler: Scheduler, make_job: MakeJob):
    scheduler.add(make_job(*[10] * 600, caller="huge"))
    scheduler.take()
    scheduler.add(make_job(90, caller="small"))
    assert [90] in [_tokens(scheduler.take()) for _ in range(3)]


async def test_a_model_does_not_wait_for_all_the_work_of_another(scheduler: Scheduler, make_job: MakeJob):
    scheduler.add(make_job(*[90] * 5, caller="huge"))
    scheduler.take()
    scheduler.add(make_job(10, caller="small", model=LengthModel("other").engine_model))
    assert [10] in (_tokens(scheduler.take()), _tokens(scheduler.take()))


async def test_a_caller_is_not_refused_for_what_goes_behind_it(scheduler: Scheduler, make_job: MakeJob):
    scheduler.note_speed(tokens=100, seconds=1.0)
    scheduler.add(make_job(*[90] * 10, caller="huge"))
    soon = time.monotonic() + 3.0
    with scheduler.admitted(20, _call("small", deadline=soon)):
        pass
    with (
        pytest.raises(DeadlineTooShort, match=r"9\.00 s"),
        scheduler.admitted(20, _call("huge", deadline=soon)),
    ):
        pass


async def test_the_limit_leaves_room_for_other_callers(scheduler: Scheduler, make_job: MakeJob):
    scheduler.add(make_job(*[100] * 10, caller="huge"))
    with pytest.raises(Overloaded), scheduler.admitted(1, _call("huge")):
        pass
    with pytest.raises(Overloaded), scheduler.admitted(501, _call("second")):
        pass
    scheduler.add(make_job(*[100] * 5, caller="second"))
    scheduler.add(make_job(*[100] * 3, caller="third"))
    with scheduler.admitted(200, _call("fourth")):
        pass
    with pytest.raises(Overloaded), scheduler.admitted(201, _call("fourth")):
        pass


async def test_callers_without_queued_texts_are_forgotten(scheduler: Scheduler, make_job: MakeJob):
    cancelled = make_job(10, caller="cancelled")
    scheduler.add(cancelled)
    scheduler.discard(cancelled)
    scheduler.add(make_job(10, caller="late", deadline=time.monotonic() - 1))
    for number in range(100):
        with scheduler.admitted(10, _call(str(number))):
            scheduler.add(make_job(10, caller=str(number)))
        scheduler.take()
    scheduler.add_task(EngineTask(lambda: 1.0))
    scheduler.take()
    lane = scheduler._interactive
    assert (lane._tokens_of_caller, lane._queues, lane.tokens) == ({}, {}, 0)
