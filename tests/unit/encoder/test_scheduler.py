from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from services.encoder.batching import BatchPolicy, CallContext, EngineModel, EngineTask, Job
from services.encoder.metrics import QUEUE_BYTES, QUEUE_TEXTS, QUEUE_TOKENS, REJECTIONS_TOTAL
from services.encoder.scheduler import CallSize, Item, Scheduler
from tests.support.length_model import SAMPLE, LengthModel
from textmatch.errors import DeadlinePassed, DeadlineTooShort, InvalidInput, NotReady, Overloaded

MakeJob = Callable[..., Job]
Admit = Callable[..., None]
NoteSpeed = Callable[..., None]


def _tokens(batch: Sequence[Item]) -> list[int]:
    return [item.tokens for item in batch]


def _call(*, caller: str = "anyone", is_bulk: bool = False, deadline: float | None = None) -> CallContext:
    return CallContext(caller, is_bulk, deadline)


@pytest.fixture
def admit(scheduler: Scheduler, length_model: LengthModel) -> Admit:
    """Admit a call of so many tokens and release it."""

    def admit(tokens: int, call: CallContext, *, model: EngineModel | None = None, **size: Any) -> None:
        with scheduler.admitted(CallSize(model or length_model.engine_model, tokens, **size), call):
            pass

    return admit


@pytest.fixture
def note_speed(scheduler: Scheduler, length_model: LengthModel) -> NoteSpeed:
    """Record a batch of the model that `make_job` uses, in both lanes."""

    def note(tokens: int, seconds: float, model: EngineModel | None = None) -> None:
        for is_bulk in (False, True):
            scheduler.note_speed(model or length_model.engine_model, tokens, seconds, is_bulk=is_bulk)

    return note


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


async def test_too_much_is_refused_with_an_honest_delay(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    refused = REJECTIONS_TOTAL.labels("overloaded")._value.get()
    note_speed(tokens=200, seconds=1.0)
    for _ in range(2):
        scheduler.add(make_job(*[90] * 5))
    with pytest.raises(Overloaded, match="900 interactive tokens are queued; the limit is 1,000") as caught:
        admit(101, _call())
    assert caught.value.retry_delay_seconds == pytest.approx(4.5)
    assert REJECTIONS_TOTAL.labels("overloaded")._value.get() == refused + 1
    admit(100, _call())


async def test_a_call_larger_than_the_queue_is_admitted_as_soon_as_half_of_it_is_free(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    note_speed(tokens=200, seconds=1.0)
    scheduler.add(make_job(*[100] * 5, caller="other"))
    admit(100_000, _call())
    scheduler.add(make_job(*[20] * 5, caller="other"))
    with pytest.raises(Overloaded) as caught:
        admit(100_000, _call())
    # What is ahead, which is more than the tokens that there is no room for.
    assert caught.value.retry_delay_seconds == pytest.approx(3.0)


async def test_a_refused_call_is_told_when_there_is_room_for_it(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed, length_model: LengthModel
):
    slow = LengthModel("slow").engine_model
    note_speed(tokens=10_000, seconds=1.0)
    note_speed(tokens=100, seconds=1.0, model=slow)
    for _ in range(2):
        scheduler.add(make_job(*[100] * 5, caller="other"))
    with pytest.raises(Overloaded) as caught:
        admit(500, _call(caller="other"), model=slow)
    # 1,000 tokens of the other model take 0.1 s. The queue has room for the call when its 500 have gone.
    assert caught.value.retry_delay_seconds == pytest.approx(5.0)


async def test_a_call_larger_than_the_queue_leaves_room_for_others(
    scheduler: Scheduler, admit: Admit, length_model: LengthModel
):
    model = length_model.engine_model
    with (
        scheduler.admitted(CallSize(model, 100_000), _call(caller="huge")),
        scheduler.admitted(CallSize(model, 500), _call(caller="small")),
    ):
        assert scheduler._interactive.tokens == 1_000
        admit(333, _call(caller="third"))
        with pytest.raises(Overloaded):
            admit(334, _call(caller="third"))
    assert scheduler._interactive.tokens == 0


async def test_calls_that_are_being_tokenized_count(
    scheduler: Scheduler, admit: Admit, length_model: LengthModel
):
    with (
        scheduler.admitted(CallSize(length_model.engine_model, 450), _call()),
        scheduler.admitted(CallSize(length_model.engine_model, 450), _call()),
        pytest.raises(Overloaded),
    ):
        admit(450, _call())
    admit(450, _call())


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


async def test_each_lane_has_its_own_limit(scheduler: Scheduler, make_job: MakeJob, admit: Admit):
    for _ in range(2):
        scheduler.add(make_job(*[90] * 6, is_bulk=True))
    with pytest.raises(Overloaded, match="bulk"):
        admit(50, _call(is_bulk=True))
    admit(50, _call())


async def test_an_empty_lane_takes_a_call_of_any_size(admit: Admit):
    admit(1_000_000, _call(is_bulk=True))


async def test_a_call_that_would_be_answered_too_late_is_refused(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    note_speed(tokens=100, seconds=1.0)
    scheduler.add(make_job(*[90] * 5))
    deadline = time.monotonic() + 2.0
    with pytest.raises(DeadlineTooShort, match=r"takes about 4\.50 s and the call 0\.10 s") as caught:
        admit(10, _call(deadline=deadline))
    assert caught.value.retry_delay_seconds == pytest.approx(4.5)
    admit(10, _call(deadline=deadline + 60))


async def test_a_call_needs_time_to_spare_unless_nothing_is_ahead(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed, length_model: LengthModel
):
    note_speed(tokens=100, seconds=10.0)
    soon = time.monotonic() + 12.0
    with scheduler.admitted(CallSize(length_model.engine_model, 90), _call(deadline=soon)):
        scheduler.add(make_job(10))
    with pytest.raises(DeadlineTooShort):
        admit(90, _call(deadline=soon))


async def test_a_call_that_takes_too_long_alone_is_refused(admit: Admit, note_speed: NoteSpeed):
    note_speed(tokens=100, seconds=1.0)
    with pytest.raises(DeadlineTooShort, match=r"takes about 0\.00 s and the call 43\.00 s") as caught:
        admit(4_300, _call(deadline=time.monotonic() + 4.0))
    assert caught.value.retry_delay_seconds is None
    admit(300, _call(deadline=time.monotonic() + 4.0))


async def test_each_model_has_its_own_speed(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    slow = LengthModel("slow").engine_model
    note_speed(tokens=10_000, seconds=1.0)
    note_speed(tokens=100, seconds=1.0, model=slow)
    scheduler.add(make_job(*[90] * 10))
    soon = time.monotonic() + 1.0
    # 0.09 s of queued work and 0.02 s of its own.
    admit(200, _call(deadline=soon))
    with pytest.raises(DeadlineTooShort, match=r"the call 2\.00 s"):
        admit(200, _call(deadline=soon), model=slow)


async def test_another_model_is_ahead_with_as_much_time_as_the_call_takes(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    slow = LengthModel("slow").engine_model
    note_speed(tokens=10_000, seconds=1.0)
    note_speed(tokens=100, seconds=1.0, model=slow)
    scheduler.add(make_job(*[100] * 10, model=slow))
    # One batch of the slow model, 1 s, goes ahead. Then the call is next, although 9 s of work are queued.
    admit(10, _call(deadline=time.monotonic() + 3.0))
    with pytest.raises(DeadlineTooShort, match=r"takes about 1\.00 s"):
        admit(10, _call(deadline=time.monotonic() + 2.0))


async def test_interactive_calls_wait_for_the_share_of_bulk(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    note_speed(tokens=100, seconds=1.0)
    scheduler.add(make_job(*[90] * 10, is_bulk=True))
    # With a share of a tenth, a ninth of 9 s.
    with pytest.raises(DeadlineTooShort, match=r"takes about 1\.00 s and the call 9\.00 s"):
        admit(900, _call(deadline=time.monotonic() + 20.0))


async def test_bulk_calls_wait_for_interactive_ones_as_long_as_the_share_allows(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    note_speed(tokens=1_000_000, seconds=1.0, model=None)
    scheduler._speeds._interactive_share = 0.0
    scheduler.add(make_job(*[90] * 10))
    bulk = _call(is_bulk=True, deadline=time.monotonic() - 1.0)
    with pytest.raises(DeadlineTooShort, match=r"takes about 0\.00 s and the call 1\.00 s"):
        admit(1_000_000, bulk)
    # Interactive batches ran all the time until now, and will go on.
    scheduler._speeds._interactive_share = 1e6
    with pytest.raises(DeadlineTooShort, match=r"takes about 9\.00 s and the call 1\.00 s"):
        admit(1_000_000, bulk)


async def test_the_time_for_tokenizing_counts(admit: Admit, note_speed: NoteSpeed):
    note_speed(tokens=100, seconds=1.0)
    soon = time.monotonic() + 2.0
    admit(10, _call(deadline=soon))
    with pytest.raises(DeadlineTooShort, match=r"the call 3\.10 s"):
        admit(10, _call(deadline=soon), tokenize_seconds=3.0)


async def test_the_running_batch_counts_until_it_ends(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    note_speed(tokens=100, seconds=100.0)
    scheduler.add(make_job(90, is_bulk=True))
    scheduler.take()
    with pytest.raises(DeadlineTooShort, match=r"the queued work takes about \d\d\.\d\d s"):
        admit(10, _call(deadline=time.monotonic() + 40.0))
    note_speed(tokens=90, seconds=90.0)
    admit(10, _call(deadline=time.monotonic() + 40.0))


async def test_interactive_calls_do_not_wait_for_all_bulk_work(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    note_speed(tokens=100, seconds=1.0)
    scheduler.add(make_job(*[90] * 10, is_bulk=True))
    admit(10, _call(deadline=time.monotonic() + 1.0))


async def test_small_batches_do_not_tell_the_speed(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    note_speed(tokens=1_000, seconds=1.0)
    for _ in range(100):
        note_speed(tokens=1, seconds=1.0)
    for _ in range(2):
        scheduler.add(make_job(*[99] * 5))
    with pytest.raises(Overloaded) as caught:
        admit(100, _call())
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


async def test_a_caller_is_not_refused_for_what_goes_behind_it(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit, note_speed: NoteSpeed
):
    note_speed(tokens=100, seconds=1.0)
    scheduler.add(make_job(*[90] * 10, caller="huge"))
    soon = time.monotonic() + 3.0
    admit(20, _call(caller="small", deadline=soon))
    with pytest.raises(DeadlineTooShort, match=r"9\.00 s"):
        admit(20, _call(caller="huge", deadline=soon))


async def test_the_limit_leaves_room_for_other_callers(scheduler: Scheduler, make_job: MakeJob, admit: Admit):
    for _ in range(2):
        scheduler.add(make_job(*[100] * 5, caller="huge"))
    with pytest.raises(Overloaded):
        admit(1, _call(caller="huge"))
    with pytest.raises(Overloaded):
        admit(501, _call(caller="second"))
    scheduler.add(make_job(*[100] * 5, caller="second"))
    scheduler.add(make_job(*[100] * 3, caller="third"))
    admit(200, _call(caller="fourth"))
    with pytest.raises(Overloaded):
        admit(201, _call(caller="fourth"))


async def test_callers_without_queued_texts_are_forgotten(
    scheduler: Scheduler, make_job: MakeJob, admit: Admit
):
    cancelled = make_job(10, caller="cancelled")
    scheduler.add(cancelled)
    scheduler.discard(cancelled)
    scheduler.add(make_job(10, caller="late", deadline=time.monotonic() - 1))
    for number in range(100):
        admit(10, _call(caller=str(number)), text_bytes=40)
        scheduler.add(make_job(10, caller=str(number)))
        scheduler.take()
    scheduler.add_task(EngineTask(lambda: 1.0))
    scheduler.take()
    lane = scheduler._interactive
    assert (len(lane._callers), lane._loads, lane._queues, lane.tokens) == (0, {}, {}, 0)
    assert len(lane.text_bytes) == 0


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
