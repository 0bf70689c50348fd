"""Which calls the scheduler admits: by the room in the queue, and by the time that the work ahead takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from services.encoder.batching import CallContext, EngineModel, EngineTask, Job
from services.encoder.metrics import REJECTIONS_TOTAL
from services.encoder.scheduler import CallSize, Scheduler
from tests.support.length_model import LengthModel
from textmatch.errors import DeadlineTooShort, Overloaded

MakeJob = Callable[..., Job]
Admit = Callable[..., None]
NoteSpeed = Callable[..., None]


def _call(*, caller: str = "anyone", is_bulk: bool = False, deadline: float | None = None) -> CallContext:
    return CallContext(caller, is_bulk, deadline)


@pytest.fixture
def admit(scheduler: Scheduler, length_model: LengthModel) -> Admit:
    """Admit a call of so many tokens and release it."""

    def admit(tokens: int, call: CallContext, *, model: EngineModel | None = None, **size: Any) -> None:
        with scheduler.admitted(CallSize(model or length_model.engine_model, tokens, **size), call):
            pass

    return admit


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
    # The time of all 600 tokens ahead of it, and not only of those over the limit.
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
