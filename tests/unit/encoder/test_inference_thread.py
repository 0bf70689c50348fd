from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from services.encoder.batching import BatchPolicy, EngineModel, Job, Rows
from services.encoder.inference_thread import InferenceThread
from services.encoder.scheduler import Scheduler
from tests.support.length_model import SAMPLE, LengthModel
from textmatch.errors import InvalidInput, NotReady, Overloaded, reason_name
from textmatch.models.fast_tokenizer import TokenizedText

MakeJob = Callable[..., Job]


class Running:
    """An inference thread and its scheduler."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(BatchPolicy(100, 0.1, 10), limit_tokens=1_000)
        self.deaths: list[BaseException] = []
        self.thread = InferenceThread(
            self.scheduler, prepare_thread=lambda: None, on_death=self.deaths.append
        )


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    running.thread.start()
    yield running
    running.thread.stop()


def _poisoned(poison: int, *, breaks_for_good: bool = False) -> tuple[EngineModel, list[int]]:
    """A model that fails on texts of `poison` tokens, and from then on if it breaks for good."""
    sizes: list[int] = []
    is_broken = False

    def forward(batch: Sequence[TokenizedText]) -> Rows:
        nonlocal is_broken
        sizes.append(len(batch))
        is_broken = is_broken or (breaks_for_good and any(text.token_count == poison for text in batch))
        if is_broken or any(text.token_count == poison for text in batch):
            raise RuntimeError("poison")
        return np.array([[text.token_count] for text in batch], dtype=np.float32)

    return EngineModel("poisoned", forward, SAMPLE), sizes


async def _result(job: Job) -> list[float]:
    rows = await asyncio.wait_for(job.result(), 10)
    return [float(row[0]) for row in rows]


async def test_rows_come_back_in_the_order_of_the_texts(running: Running, make_job: MakeJob):
    job = make_job(5, 90, 7, 60, 5, 30)
    running.scheduler.add(job)
    assert await _result(job) == [5, 90, 7, 60, 5, 30]


async def test_jobs_are_joined_and_each_gets_its_own(make_job: MakeJob, length_model: LengthModel):
    running = Running()
    jobs = [make_job(number, number) for number in range(5, 10)]
    for job in jobs:
        running.scheduler.add(job)
    running.thread.start()
    assert [await _result(job) for job in jobs] == [[number, number] for number in range(5, 10)]
    assert [len(batch) for batch in length_model.batches] == [3, 7]
    running.thread.stop()


async def test_only_the_text_at_fault_fails(make_job: MakeJob):
    running = Running()
    model, _ = _poisoned(13)
    good, bad = make_job(12, 11, model=model), make_job(10, 13, 12, 13, model=model)
    running.scheduler.add(good)
    running.scheduler.add(bad)
    running.thread.start()
    assert await _result(good) == [12, 11]
    with pytest.raises(InvalidInput) as caught:
        await _result(bad)
    violations = caught.value.violations
    assert [violation.field for violation in violations] == ["texts[1]", "texts[3]"]
    assert {reason_name(violation.reason) for violation in violations} == {"TEXT_FAILED"}
    assert running.deaths == []
    running.thread.stop()


async def test_the_thread_continues_after_a_poisoned_text(running: Running, make_job: MakeJob):
    model, sizes = _poisoned(13)
    for _ in range(3):
        bad = make_job(13, model=model)
        running.scheduler.add(bad)
        with pytest.raises(InvalidInput):
            await _result(bad)
    assert sizes == [1, 1] * 3
    good = make_job(12, model=model)
    running.scheduler.add(good)
    assert await _result(good) == [12]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_model_that_breaks_for_good_fails_all_callers(make_job: MakeJob):
    running = Running()
    model, _ = _poisoned(13, breaks_for_good=True)
    jobs = [make_job(12, 80, model=model), make_job(13, model=model), make_job(90), make_job(5, is_bulk=True)]
    for job in jobs:
        running.scheduler.add(job)
    running.thread.start()
    for job in jobs:
        with pytest.raises(NotReady, match="the encoder restarts"):
            await _result(job)
    running.thread.stop()
    assert [str(death) for death in running.deaths] == ["poisoned fails on its sample too"]
    with pytest.raises(NotReady):
        running.scheduler.add(make_job(1))


async def test_a_bug_in_the_thread_fails_all_callers(make_job: MakeJob):
    running = Running()
    model = EngineModel("wrong", lambda batch: np.zeros((len(batch) + 1, 1), dtype=np.float32), SAMPLE)
    job = make_job(10, model=model)
    running.scheduler.add(job)
    running.thread.start()
    with pytest.raises(NotReady):
        await _result(job)
    running.thread.stop()
    assert len(running.deaths) == 1


async def test_stopping_finishes_the_running_batch(make_job: MakeJob):
    running = Running()
    started, go_on = threading.Event(), threading.Event()

    def forward(batch: Sequence[TokenizedText]) -> Rows:
        started.set()
        go_on.wait(10)
        return np.ones((len(batch), 1), dtype=np.float32)

    model = EngineModel("slow", forward, SAMPLE)
    first, second = make_job(90, model=model), make_job(90, model=model)
    running.scheduler.add(first)
    running.scheduler.add(second)
    running.thread.start()
    await asyncio.to_thread(started.wait, 10)
    stopping = asyncio.create_task(asyncio.to_thread(running.thread.stop))
    with pytest.raises(NotReady, match="shutting down"):
        await _result(second)
    go_on.set()
    await stopping
    assert await _result(first) == [1]
    assert running.deaths == []


async def test_a_caller_that_has_gone_affects_nothing_else(running: Running, make_job: MakeJob):
    gone, kept = make_job(90), make_job(90)
    task = asyncio.create_task(gone.result())
    await asyncio.sleep(0)
    task.cancel()
    running.scheduler.add(gone)
    running.scheduler.add(kept)
    assert await _result(kept) == [90]


async def test_tasks_run_in_the_inference_thread(running: Running, make_job: MakeJob):
    threads: set[str] = set()

    def forward(batch: Sequence[TokenizedText]) -> Rows:
        threads.add(threading.current_thread().name)
        return np.ones((len(batch), 1), dtype=np.float32)

    job = make_job(5, model=EngineModel("named", forward, SAMPLE))
    running.scheduler.add(job)
    await _result(job)
    name = await asyncio.to_thread(running.thread.run, lambda: threading.current_thread().name)
    assert threads == {name}


async def test_a_failing_task_affects_nothing_else(running: Running, make_job: MakeJob):
    def fail() -> float:
        raise RuntimeError("this model cannot be run")

    with pytest.raises(RuntimeError, match="this model cannot be run"):
        await asyncio.to_thread(running.thread.run, fail)
    job = make_job(12)
    running.scheduler.add(job)
    assert await _result(job) == [12]
    assert running.deaths == []


async def test_a_stopped_thread_runs_no_tasks():
    running = Running()
    running.thread.start()
    running.thread.stop()
    with pytest.raises(NotReady, match="shutting down"):
        running.thread.run(lambda: 1.0)


async def test_an_idle_thread_keeps_no_model(running: Running, make_job: MakeJob):
    def forward(batch: Sequence[TokenizedText]) -> Rows:
        return np.ones((len(batch), 1), dtype=np.float32)

    kept = weakref.ref(forward)
    job = make_job(5, 6, model=EngineModel("replaced", forward, SAMPLE))
    del forward
    running.scheduler.add(job)
    await _result(job)
    assert kept() is not None
    del job
    async with asyncio.timeout(10):
        while kept() is not None:  # noqa: ASYNC110 -- the engine's thread lets go of it
            await asyncio.sleep(0.002)


class Memory:
    """The memory of a device, in tokens. A block is free again when nothing refers to it."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.used = 0

    def allocate(self, tokens: int) -> object:
        if self.used + tokens > self.tokens:
            raise RuntimeError("CUDA out of memory. Tried to allocate a block")
        block = _Block()
        self.used += tokens
        weakref.finalize(block, self._free, tokens)
        return block

    def _free(self, tokens: int) -> None:
        self.used -= tokens


class _Block:
    pass


def _of_memory(memory: Memory) -> tuple[EngineModel, list[int]]:
    """A model of two layers, whose states take as much memory as there are tokens. And its batches."""
    batches: list[int] = []

    def forward(batch: Sequence[TokenizedText]) -> Rows:
        tokens = sum(text.token_count for text in batch)
        batches.append(tokens)
        states = memory.allocate(tokens)
        states = states, memory.allocate(tokens)
        del states
        return np.array([[text.token_count] for text in batch], dtype=np.float32)

    return EngineModel("large", forward, SAMPLE, is_packed=True), batches


async def test_a_batch_that_does_not_fit_into_memory_fails_nobody(make_job: MakeJob):
    running = Running()
    memory = Memory(70)
    model, batches = _of_memory(memory)
    jobs = [make_job(25, 25, 20, 20, model=model), make_job(30, 30, 30, model=model)]
    for job in jobs:
        running.scheduler.add(job)
    running.thread.start()
    assert await _result(jobs[0]) == [25, 25, 20, 20]
    assert await _result(jobs[1]) == [30, 30, 30]
    assert memory.used == 0
    assert running.deaths == []
    # After the first failure, batches are small enough.
    later = make_job(*[10] * 10, model=model)
    batches.clear()
    running.scheduler.add(later)
    assert await _result(later) == [10] * 10
    assert max(batches) <= 35
    running.thread.stop()


async def test_memory_is_never_the_fault_of_a_text(running: Running, make_job: MakeJob):
    model, _ = _of_memory(Memory(70))
    job = make_job(20, 60, 20, model=model)
    running.scheduler.add(job)
    with pytest.raises(Overloaded, match="not enough memory for a text of 60 tokens") as caught:
        await _result(job)
    assert caught.value.retry_delay_seconds
    assert running.scheduler._interactive.tokens == 0
    good = make_job(20, model=model)
    running.scheduler.add(good)
    assert await _result(good) == [20]
    assert running.deaths == []


def _watched(forward: Callable[[Sequence[TokenizedText]], Rows]) -> Callable[[], list[EngineModel]]:
    model = EngineModel("watched", forward, SAMPLE)
    return lambda: [model]


async def test_an_engine_that_hangs_is_noticed(running: Running):
    opened = threading.Event()
    deaths: list[BaseException] = []

    def hang(batch: Sequence[TokenizedText]) -> Rows:
        opened.wait(20)
        return np.ones((len(batch), 1), dtype=np.float32)

    await asyncio.wait_for(running.thread.watch(_watched(hang), 0.3, deaths.append), 10)
    opened.set()
    assert [str(death) for death in deaths] == ["watched computed nothing for 0.3 s"]


async def test_an_engine_whose_sample_fails_is_noticed(running: Running):
    deaths: list[BaseException] = []

    def fail(batch: Sequence[TokenizedText]) -> Rows:
        raise RuntimeError("the device is gone")

    await asyncio.wait_for(running.thread.watch(_watched(fail), 0.3, deaths.append), 10)
    assert [str(death) for death in deaths] == [
        "watched fails on its sample: RuntimeError('the device is gone')"
    ]


async def test_an_idle_engine_is_watched_until_it_stops(running: Running):
    passes: list[int] = []
    deaths: list[BaseException] = []

    def forward(batch: Sequence[TokenizedText]) -> Rows:
        passes.append(len(batch))
        return np.ones((len(batch), 1), dtype=np.float32)

    watching = asyncio.create_task(running.thread.watch(_watched(forward), 0.3, deaths.append))
    async with asyncio.timeout(10):
        while len(passes) < 3:  # noqa: ASYNC110 -- the engine's thread counts
            await asyncio.sleep(0.01)
    await asyncio.to_thread(running.thread.stop)
    await asyncio.wait_for(watching, 10)
    assert deaths == []
