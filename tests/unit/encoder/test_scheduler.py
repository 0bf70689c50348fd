from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from services.encoder.batching import BatchPolicy, CallContext, EngineModel, EngineTask, Job
from services.encoder.metrics import QUEUE_BYTES, QUEUE_TEXTS, QUEUE_TOKENS
from services.encoder.scheduler import CallSize, Item, Scheduler
from tests.support.length_model import SAMPLE, LengthModel
from textmatch.errors import DeadlinePassed, InvalidInput, NotReady, Overloaded

MakeJob = Callable[..., Job]
Admit = Callable[..., None]
NoteSpeed = Callable[..., None]


def _tokens(batch: Sequence[Item]) -> list[int]:
    return [item.tokens for item in batch]


def _call(*, caller: str = "anyone", is_bulk: bool = False, deadline: float | None = None) -> CallContext:
    return CallContext(caller, is_bulk, deadline)


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


async def test_bulk_gets_its_share_of_the_time_of_models_of_any_speed(
    scheduler: Scheduler, make_job: MakeJob, note_speed: NoteSpeed
):
    slow = LengthModel("slow").engine_model
    note_speed(tokens=1_000, seconds=0.01)
    note_speed(tokens=100, seconds=0.01, model=slow)
    scheduler.add(make_job(*[100] * 10, is_bulk=True, model=slow))
    lanes = []
    for _ in range(200):
        scheduler.add(make_job(50, 50))
        lanes.append(scheduler.take()[0].job.call.is_bulk)
    # A bulk batch takes as long as ten interactive ones, and comes once in ninety.
    assert lanes.count(True) == 2


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


async def test_the_texts_of_calls_are_limited_in_bytes(length_model: LengthModel):
    scheduler = Scheduler(BatchPolicy(100, 0.1, 10), limit_tokens=1_000, limit_bytes=1_000)

    def size(text_bytes: int) -> CallSize:
        return CallSize(length_model.engine_model, 1, text_bytes)

    with scheduler.admitted(size(900), _call(caller="one")):
        assert QUEUE_BYTES.labels("interactive")._value.get() == 900
        with (
            pytest.raises(Overloaded, match="hold 900 bytes of texts; the limit is 1,000") as caught,
            scheduler.admitted(size(101), _call(caller="one")),
        ):
            pass
        with scheduler.admitted(size(500), _call(caller="two")):
            pass
    assert caught.value.retry_delay_seconds == 1.0
    with scheduler.admitted(size(1_000), _call(caller="one")):
        pass
    assert QUEUE_BYTES.labels("interactive")._value.get() == 0


async def test_a_call_with_too_many_bytes_is_told_so(length_model: LengthModel):
    scheduler = Scheduler(BatchPolicy(100, 0.1, 10), limit_tokens=1_000, limit_bytes=1_000)
    with (
        pytest.raises(InvalidInput, match=r"1,001 bytes together; the limit is 1,000; send fewer in a call"),
        scheduler.admitted(CallSize(length_model.engine_model, 1, 1_001), _call()),
    ):
        pass


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


async def test_a_call_is_counted_until_all_of_its_parts_are_computed(
    scheduler: Scheduler, make_job: MakeJob, length_model: LengthModel
):
    lane = scheduler._interactive
    with scheduler.admitted(CallSize(length_model.engine_model, 300), _call()) as load:
        job = make_job(90, 90, load=load, estimated_tokens=150)
        scheduler.add(job)
        assert (lane.tokens, load.tokens) == (330, 330)
        scheduler.take()
        assert lane.tokens == 240
        scheduler.discard(job)
        assert lane.tokens == 150
    assert (lane.tokens, lane._loads) == (0, {})


async def test_a_slow_models_batches_are_smaller(make_job: MakeJob):
    scheduler = Scheduler(BatchPolicy(8_192, 0.1, 64, target_seconds=0.02), limit_tokens=10**6)
    models = [
        replace(LengthModel().engine_model, tokens_per_second=speed, is_packed=True)
        for speed in (20_000, 200_000, 5_000_000)
    ]
    sizes = []
    for model in models:
        scheduler.add(make_job(*[10] * 1_000, model=model))
        sizes.append(sum(_tokens(scheduler.take())))
        while scheduler._interactive.texts:
            scheduler.take()
    assert sizes == [400, 4_000, 8_190]


async def test_batches_that_did_not_fit_into_memory_are_not_made_again(
    scheduler: Scheduler, make_job: MakeJob, length_model: LengthModel
):
    scheduler.lower_budget(length_model.engine_model, 50)
    scheduler.lower_budget(length_model.engine_model, 70)
    scheduler.add(make_job(*[10] * 20))
    assert len(scheduler.take()) == 5
    scheduler.add(make_job(*[10] * 20, model=LengthModel("other").engine_model))
    assert {len(scheduler.take()), len(scheduler.take())} == {5, 10}
