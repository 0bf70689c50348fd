from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest

from services.encoder.batching import BatchPolicy, CallContext, EngineModel, EngineTask, Job
from services.encoder.metrics import QUEUE_TEXTS, QUEUE_TOKENS, REJECTIONS_TOTAL
from services.encoder.scheduler import Item, Scheduler
from tests.support.length_model import SAMPLE, LengthModel
from textmatch.errors import DeadlinePassed, DeadlineTooShort, NotReady, Overloaded

MakeJob = Callable[..., Job]


def _tokens(batch: Sequence[Item]) -> list[int]:
    return [item.tokens for item in batch]


def _call(*, caller: str = "anyone", is_bulk: bool = False, deadline: float | None = None) -> CallContext:
    return CallContext(caller, is_bulk, deadline)


def _admit(scheduler: Scheduler, tokens: int, call: CallContext) -> None:
    with scheduler.admitted(tokens, call):
        pass


def _depth(lane: str) -> tuple[float, float]:
    return QUEUE_TEXTS.labels(lane)._value.get(), QUEUE_TOKENS.labels(lane)._value.get()


async def test_texts_of_several_jobs_share_a_batch(scheduler: Scheduler, make_job: MakeJob):
    jobs = [make_job(10), make_job(11, 12), make_job(10)]
    for job in jobs:
        scheduler.add(job)
    batch = scheduler.take()
    assert sorted(_tokens(batch)) == [10, 10, 11, 12]
    assert {item.job for item in batch} == set(jobs)


async def test_a_job_too_large_for_a_batch_is_split(scheduler: Scheduler, make_job: MakeJob):
    job = make_job(*[30] * 7)
    scheduler.add(job)
    batches = [scheduler.take() for _ in range(3)]
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(item.position for batch in batches for item in batch) == list(range(7))


async def test_the_oldest_goes_first(scheduler: Scheduler, make_job: MakeJob):
    scheduler.add(make_job(90))
    scheduler.add(make_job(10))
    scheduler.add(make_job(91))
    assert [_tokens(scheduler.take()) for _ in range(3)] == [[90], [10], [91]]


async def test_interactive_texts_go_ahead_of_bulk(scheduler: Scheduler, make_job: MakeJob):
    scheduler.add(make_job(10, is_bulk=True))
    scheduler.add(make_job(11))
    assert [_tokens(scheduler.take()) for _ in range(2)] == [[11], [10]]


async def test_bulk_advances_under_any_interactive_load(scheduler: Scheduler, make_job: MakeJob):
    scheduler.add(make_job(*[50] * 10, is_bulk=True))
    lanes = []
    for _ in range(200):
        scheduler.add(make_job(50, 50))
        lanes.append(scheduler.take()[0].job.call.is_bulk)
    assert lanes.count(True) == 5
    assert lanes.index(True) < 15


async def test_a_batch_is_of_one_model(scheduler: Scheduler, make_job: MakeJob):
    other = LengthModel("other").engine_model
    scheduler.add(make_job(10))
    scheduler.add(make_job(10, model=other))
    scheduler.add(make_job(10))
    assert [len(scheduler.take()) for _ in range(2)] == [2, 1]


async def test_queued_texts_are_counted(scheduler: Scheduler, make_job: MakeJob):
    scheduler.add(make_job(90, 90))
    scheduler.add(make_job(5, is_bulk=True))
    assert (_depth("interactive"), _depth("bulk")) == ((2, 180), (1, 5))
    scheduler.take()
    assert _depth("interactive") == (1, 90)
    scheduler.take()
    scheduler.take()
    assert (_depth("interactive"), _depth("bulk")) == ((0, 0), (0, 0))


async def test_a_cancelled_job_is_neither_computed_nor_counted(scheduler: Scheduler, make_job: MakeJob):
    cancelled, kept = make_job(10, 20, 30), make_job(10)
    scheduler.add(cancelled)
    scheduler.add(kept)
    scheduler.discard(cancelled)
    assert _depth("interactive") == (1, 10)
    assert [item.job for item in scheduler.take()] == [kept]
    assert _depth("interactive") == (0, 0)


async def test_the_rest_of_a_job_cancelled_half_way_is_not_computed(scheduler: Scheduler, make_job: MakeJob):
    cancelled, kept = make_job(90, 91), make_job(92)
    scheduler.add(cancelled)
    scheduler.add(kept)
    assert _tokens(scheduler.take()) == [90]
    scheduler.discard(cancelled)
    assert _tokens(scheduler.take()) == [92]


async def test_a_job_whose_deadline_passed_is_not_computed(scheduler: Scheduler, make_job: MakeJob):
    late, kept = make_job(10, deadline=time.monotonic() - 1), make_job(20)
    scheduler.add(late)
    scheduler.add(kept)
    assert [item.job for item in scheduler.take()] == [kept]
    with pytest.raises(DeadlinePassed):
        await asyncio.wait_for(late.result(), 5)
    assert _depth("interactive") == (0, 0)


async def test_too_much_is_refused_with_an_honest_delay(scheduler: Scheduler, make_job: MakeJob):
    refused = REJECTIONS_TOTAL.labels("overloaded")._value.get()
    scheduler.note_speed(tokens=200, seconds=1.0)
    scheduler.add(make_job(*[90] * 10))
    with pytest.raises(Overloaded, match="900 interactive tokens are queued; the limit is 1,000") as caught:
        _admit(scheduler, 101, _call())
    assert caught.value.retry_delay_seconds == pytest.approx(4.5)
    assert REJECTIONS_TOTAL.labels("overloaded")._value.get() == refused + 1
    _admit(scheduler, 100, _call())


async def test_calls_that_are_being_tokenised_count(scheduler: Scheduler):
    with (
        scheduler.admitted(600, _call()),
        pytest.raises(Overloaded),
        scheduler.admitted(600, _call()),
    ):
        pass
    _admit(scheduler, 600, _call())


async def test_each_lane_has_its_own_limit(scheduler: Scheduler, make_job: MakeJob):
    scheduler.add(make_job(*[90] * 11, is_bulk=True))
    with pytest.raises(Overloaded, match="bulk"):
        _admit(scheduler, 50, _call(is_bulk=True))
    _admit(scheduler, 50, _call())


async def test_an_empty_lane_takes_a_call_of_any_size(scheduler: Scheduler):
    with scheduler.admitted(1_000_000, _call(is_bulk=True)):
        is_admitted = True
    assert is_admitted


async def test_a_call_that_would_be_answered_too_late_is_refused(scheduler: Scheduler, make_job: MakeJob):
    scheduler.note_speed(tokens=100, seconds=1.0)
    scheduler.add(make_job(*[90] * 5))
    deadline = time.monotonic() + 2.0
    with pytest.raises(DeadlineTooShort, match=r"takes about 4\.50 s") as caught:
        _admit(scheduler, 10, _call(deadline=deadline))
    assert caught.value.retry_delay_seconds == pytest.approx(4.5)
    _admit(scheduler, 10, _call(deadline=deadline + 60))


async def test_a_call_needs_time_to_spare_unless_nothing_is_ahead(scheduler: Scheduler, make_job: MakeJob):
    scheduler.note_speed(tokens=100, seconds=1.0)
    soon = time.monotonic() + 1.2
    with scheduler.admitted(90, _call(deadline=soon)):
        scheduler.add(make_job(10))
    with pytest.raises(DeadlineTooShort):
        _admit(scheduler, 90, _call(deadline=soon))


async def test_interactive_calls_do_not_wait_for_bulk(scheduler: Scheduler, make_job: MakeJob):
    scheduler.note_speed(tokens=100, seconds=1.0)
    scheduler.add(make_job(*[90] * 10, is_bulk=True))
    with scheduler.admitted(10, _call(deadline=time.monotonic() + 1.0)):
        is_admitted = True
    assert is_admitted


async def test_small_batches_do_not_tell_the_speed(scheduler: Scheduler, make_job: MakeJob):
    scheduler.note_speed(tokens=1_000, seconds=1.0)
    for _ in range(100):
        scheduler.note_speed(tokens=1, seconds=1.0)
    scheduler.add(make_job(*[90] * 11))
    with pytest.raises(Overloaded) as caught:
        _admit(scheduler, 100, _call())
    assert caught.value.retry_delay_seconds == pytest.approx(0.99)


async def test_closing_fails_queued_jobs_and_refuses_new_ones(scheduler: Scheduler, make_job: MakeJob):
    job = make_job(10, 20)
    scheduler.add(job)
    scheduler.close(NotReady("over"))
    assert scheduler.take() == []
    with pytest.raises(NotReady, match="over"):
        await asyncio.wait_for(job.result(), 5)
    with pytest.raises(NotReady, match="over"):
        scheduler.add(make_job(10))
    assert _depth("interactive") == (0, 0)


async def test_choosing_from_many_queued_texts_is_fast(make_job: MakeJob):
    scheduler = Scheduler(BatchPolicy(1024, 0.1, 64), limit_tokens=10**9)
    model = EngineModel("many", lambda batch: pytest.fail("not computed here"), SAMPLE)
    scheduler.add(make_job(*(1 + number % 200 for number in range(20_000)), model=model))
    started = time.process_time()
    for _ in range(100):
        scheduler.take()
    assert time.process_time() - started < 1.0


async def test_a_deadline_that_passes_while_a_batch_is_chosen_breaks_nothing(
    scheduler: Scheduler, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
):
    late = make_job(10)
    # It is in time when the lane is chosen, and over when its texts are.
    answers = iter([False])
    monkeypatch.setattr(scheduler._interactive, "_is_over", lambda job: job is late and next(answers, True))
    scheduler.add(late)
    taken = asyncio.create_task(asyncio.to_thread(scheduler.take))
    await asyncio.sleep(0.05)
    assert not taken.done()
    scheduler.add(make_job(11))
    assert _tokens(await asyncio.wait_for(taken, 5)) == [11]


async def test_tasks_and_batches_alternate(scheduler: Scheduler, make_job: MakeJob):
    tasks = [EngineTask(lambda: 1.0) for _ in range(4)]
    for task in tasks:
        scheduler.add_task(task)
    scheduler.add(make_job(90))
    scheduler.add(make_job(91, is_bulk=True))
    taken = [scheduler.take() for _ in range(6)]
    assert [work for work in taken if isinstance(work, EngineTask)] == tasks
    assert [isinstance(work, EngineTask) for work in taken] == [True, False, True, False, True, True]
    assert [_tokens(work) for work in taken if not isinstance(work, EngineTask)] == [[90], [91]]


async def test_closing_fails_tasks(scheduler: Scheduler):
    task = EngineTask(lambda: 1.0)
    scheduler.add_task(task)
    scheduler.close()
    with pytest.raises(NotReady, match="shutting down"):
        task.wait()
    with pytest.raises(NotReady, match="shutting down"):
        scheduler.add_task(task)
    assert scheduler.take() == []


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
    _admit(scheduler, 20, _call(caller="small", deadline=soon))
    with pytest.raises(DeadlineTooShort, match=r"9\.00 s"):
        _admit(scheduler, 20, _call(caller="huge", deadline=soon))


async def test_the_limit_leaves_room_for_other_callers(scheduler: Scheduler, make_job: MakeJob):
    scheduler.add(make_job(*[100] * 10, caller="huge"))
    with pytest.raises(Overloaded):
        _admit(scheduler, 1, _call(caller="huge"))
    with pytest.raises(Overloaded):
        _admit(scheduler, 501, _call(caller="second"))
    scheduler.add(make_job(*[100] * 5, caller="second"))
    scheduler.add(make_job(*[100] * 3, caller="third"))
    _admit(scheduler, 200, _call(caller="fourth"))
    with pytest.raises(Overloaded):
        _admit(scheduler, 201, _call(caller="fourth"))


async def test_callers_without_queued_texts_are_forgotten(scheduler: Scheduler, make_job: MakeJob):
    cancelled = make_job(10, caller="cancelled")
    scheduler.add(cancelled)
    scheduler.discard(cancelled)
    scheduler.add(make_job(10, caller="late", deadline=time.monotonic() - 1))
    for number in range(100):
        with scheduler.admitted(10, _call(caller=str(number))):
            scheduler.add(make_job(10, caller=str(number)))
        scheduler.take()
    scheduler.add_task(EngineTask(lambda: 1.0))
    scheduler.take()
    lane = scheduler._interactive
    assert (lane._tokens_of_caller, lane._queues, lane.tokens) == ({}, {}, 0)
