"""The one thread that runs models: takes batches from the scheduler and hands the rows to their jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from services.encoder import metrics
from services.encoder.batching import EngineModel, EngineTask, Outcome, deliver, padded_tokens
from services.encoder.scheduler import Item, Scheduler
from textmatch.errors import NotReady

_log = logging.getLogger(__name__)


class EngineBroken(Exception):
    """A model fails on its sample text, which it processed without an error before."""


class InferenceThread:
    """Runs batches and tasks from the scheduler, one at a time.

    A batch that fails is halved until the failing text is alone, and only that text gets an error. Before
    that, the model must still work on its sample. If the sample fails too, the engine is broken: all callers
    get an error, and the process exits to be restarted by its supervisor.

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

    def stop(self) -> None:
        """Finish the running batch, fail what is queued, and end the thread."""
        self._scheduler.close()
        self._thread.join()

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
        seconds = time.perf_counter() - started
        first = batch[0].job
        tokens = sum(item.tokens for item in batch)
        self._scheduler.note_speed(first.model, tokens, seconds, is_bulk=first.call.is_bulk)
        _observe_forward(batch, seconds)
        deliver([job for job in {item.job: None for item in batch} if job.is_over])

    def _compute_or_halve(self, model: EngineModel, batch: Sequence[Item]) -> None:
        try:
            rows = model.forward([item.text for item in batch])
        except Exception as error:  # noqa: BLE001 -- models fail in any way
            if len(batch) == 1:
                self._blame(model, batch[0], error)
                return
            _log.warning("a batch of %d texts failed and is halved: %r", len(batch), error)
            middle = len(batch) // 2
            self._compute_or_halve(model, batch[:middle])
            self._compute_or_halve(model, batch[middle:])
            return
        for item, row in zip(batch, rows, strict=True):
            item.job.put(item.position, row)

    def _blame(self, model: EngineModel, item: Item, error: Exception) -> None:
        try:
            model.forward([model.sample])
        except Exception as sample_error:
            raise EngineBroken(f"{model.model_id} fails on its sample too") from sample_error
        _log.error("%s failed on one text", model.model_id, exc_info=error)
        metrics.FAILED_TEXTS_TOTAL.inc()
        item.job.put_failure(item.position)


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
