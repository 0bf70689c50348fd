"""The one thread that runs models: takes batches from the scheduler and hands the rows to their jobs."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from services.encoder import metrics
from services.encoder.batching import EngineModel, EngineTask, Outcome, deliver, padded_tokens
from services.encoder.scheduler import Item, Scheduler
from textmatch.errors import NotReady, Overloaded, TextMatchError
from textmatch.runtime.process import call_in_thread

_log = logging.getLogger(__name__)

# Of torch and of its libraries, on CPUs and GPUs.
_MEMORY_MESSAGES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
    "ALLOC_FAILED",
)
_MEMORY_RETRY_SECONDS = 1.0
_PASSES_PER_LIMIT = 6


class EngineBroken(Exception):
    """A model fails on its sample text, which it processed without an error before."""


class InferenceThread:
    """Runs batches and tasks from the scheduler, one at a time.

    A batch that fails is halved until the failing text is alone, and only that text gets an error. Before
    that, the model must still work on its sample. If the sample fails too, the engine is broken: all callers
    get an error, and the process exits to be restarted by its supervisor.

    A batch that does not fit into memory is halved too, and later batches of the model are smaller. A text
    that does not fit alone is not at fault: its call may be retried.

    Args:
        scheduler: where batches and tasks come from.
        prepare_thread: called first in the thread.
        on_death: called last in the thread, if the engine breaks.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        prepare_thread: Callable[[], None],
        on_death: Callable[[BaseException], object],
    ) -> None:
        self._scheduler = scheduler
        self._prepare_thread = prepare_thread
        self._on_death = on_death
        self._computed_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def run(self, function: Callable[[], Outcome]) -> Outcome:
        """Call a function in the thread, between two batches, and block until it has returned.

        Raises:
            TextMatchError: the thread has stopped.
            Exception: what the function raised.
        """
        task = EngineTask(function)
        self._scheduler.add_task(task)
        return task.wait()

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Finish the running batch, fail what is queued, and end the thread, if it does not hang."""
        self._scheduler.close()
        self._thread.join(timeout_seconds)

    async def watch(
        self,
        models: Callable[[], Sequence[EngineModel]],
        limit_seconds: float,
        on_death: Callable[[BaseException], object],
    ) -> None:
        """Run a pass of a model's sample now and then, if no batch was computed, until the thread stops.

        Args:
            models: the models that are served now.
            limit_seconds: for a pass and what is computed before it.
            on_death: called if a pass takes longer or fails.
        """
        for number in itertools.count():
            await asyncio.sleep(limit_seconds / _PASSES_PER_LIMIT)
            served = models()
            idle_seconds = time.monotonic() - self._computed_at
            if not served or idle_seconds < limit_seconds / _PASSES_PER_LIMIT:
                continue
            model = served[number % len(served)]
            try:
                async with asyncio.timeout(limit_seconds):
                    await call_in_thread(partial(self.run, partial(model.forward, [model.sample])))
                continue
            except TimeoutError:
                on_death(EngineBroken(f"{model.model_id} computed nothing for {limit_seconds:g} s"))
            except TextMatchError:  # the thread has stopped
                pass
            except Exception as error:  # noqa: BLE001 -- models fail in any way
                on_death(EngineBroken(f"{model.model_id} fails on its sample: {error!r}"))
            return

    def _run(self) -> None:
        batch: list[Item] = []
        try:
            self._prepare_thread()
            while work := self._scheduler.take():
                if isinstance(work, EngineTask):
                    work.run()
                else:
                    batch = work
                    self._compute(batch)
                # While the thread is idle, the last batch must not keep a replaced model in memory.
                batch, work = [], []
        except BaseException as error:  # noqa: BLE001 -- no caller may be left waiting
            _log.critical("the engine broke", exc_info=error)
            failure = NotReady("the engine broke; the encoder restarts", retry_delay_seconds=5.0)
            for job in {item.job for item in batch}:
                job.end(failure)
            self._scheduler.close(failure)
            self._on_death(error)

    def _compute(self, batch: Sequence[Item]) -> None:
        _observe_queue(batch)
        started = time.perf_counter()
        self._compute_or_halve(batch[0].job.model, batch)
        self._computed_at = time.monotonic()
        seconds = time.perf_counter() - started
        first = batch[0].job
        tokens = sum(item.tokens for item in batch)
        self._scheduler.note_speed(first.model, tokens, seconds, is_bulk=first.call.is_bulk)
        _observe_forward(batch, seconds)
        deliver([job for job in {item.job: None for item in batch} if job.is_over])

    def _compute_or_halve(self, model: EngineModel, batch: Sequence[Item]) -> None:
        failure = self._try(model, batch)
        if failure is None:
            return
        if failure.is_out_of_memory:
            metrics.OUT_OF_MEMORY_TOTAL.inc()
            _free_cached_memory()
        if len(batch) == 1:
            self._blame(model, batch[0], failure)
            return
        if failure.is_out_of_memory:
            self._scheduler.lower_budget(model, _computed_tokens(model, batch) // 2)
        _log.warning("a batch of %d texts failed and is halved: %s", len(batch), failure.reason)
        middle = len(batch) // 2
        self._compute_or_halve(model, batch[:middle])
        self._compute_or_halve(model, batch[middle:])

    def _try(self, model: EngineModel, batch: Sequence[Item]) -> _Failure | None:
        """Compute a batch. Returns a description of the error, whose traceback keeps the batch's memory."""
        try:
            rows = model.forward([item.text for item in batch])
        except Exception as error:  # noqa: BLE001 -- models fail in any way
            return _Failure(repr(error), traceback.format_exc(), _is_out_of_memory(error))
        for item, row in zip(batch, rows, strict=True):
            item.job.put(item.position, row)
        return None

    def _blame(self, model: EngineModel, item: Item, failure: _Failure) -> None:
        """Fail a text, or its call if memory was short, unless the model itself is broken."""
        if failure.is_out_of_memory:
            # Reference cycles may hold memory. Finding them takes too long for larger batches.
            gc.collect()
            _free_cached_memory()
            if self._try(model, [item]) is None:
                return
        try:
            model.forward([model.sample])
        except Exception as sample_error:
            raise EngineBroken(f"{model.model_id} fails on its sample too") from sample_error
        _log.error("%s failed on one text of %d tokens: %s", model.model_id, item.tokens, failure.details)
        if failure.is_out_of_memory:
            message = f"not enough memory for a text of {item.tokens} tokens"
            self._scheduler.end(item.job, Overloaded(message, retry_delay_seconds=_MEMORY_RETRY_SECONDS))
            return
        metrics.FAILED_TEXTS_TOTAL.inc()
        item.job.put_failure(item.position)


@dataclass(frozen=True)
class _Failure:
    """Why a batch failed. Text only: an exception would keep the memory of the batch allocated."""

    reason: str
    details: str
    is_out_of_memory: bool


def _is_out_of_memory(error: Exception) -> bool:
    """Torch has an exception for GPUs, and reports CPUs and libraries by messages."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MEMORY_MESSAGES)


def _free_cached_memory() -> None:
    """Free what torch keeps of freed GPU memory in blocks of other sizes."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _computed_tokens(model: EngineModel, batch: Sequence[Item]) -> int:
    token_counts = [item.tokens for item in batch]
    return sum(token_counts) if model.is_packed else padded_tokens(token_counts)


def _observe_queue(batch: Sequence[Item]) -> None:
    """Observe the queue time of the jobs whose first texts are in this batch."""
    now = time.perf_counter()
    queue_seconds = metrics.STAGE_SECONDS.labels("queue")
    for job, taken in Counter(item.job for item in batch).items():
        if taken + job.queued_texts == len(job.texts):
            queue_seconds.observe(now - job.added_at)


def _observe_forward(batch: Sequence[Item], seconds: float) -> None:
    token_counts = [item.tokens for item in batch]
    tokens = sum(token_counts)
    job = batch[0].job
    metrics.STAGE_SECONDS.labels("forward").observe(seconds)
    metrics.BATCH_TEXTS.observe(len(batch))
    metrics.BATCH_TOKENS.observe(tokens)
    if not job.model.is_packed:
        metrics.PADDING_RATIO.observe(padded_tokens(token_counts) / max(tokens, 1))
    metrics.TOKENS_TOTAL.labels("bulk" if job.call.is_bulk else "interactive").inc(tokens)
