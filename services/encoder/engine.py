"""The one thread that runs models."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from services.encoder import metrics
from services.encoder.batching import padded_tokens
from services.encoder.jobs import EngineModel, Errand, Job, Outcome, deliver
from services.encoder.lanes import Item
from services.encoder.waiting import WaitingTexts
from textmatch.errors import NotReady

_log = logging.getLogger(__name__)


class EngineBroken(Exception):
    """A model fails on a text that it has worked on before."""


class Engine:
    """Takes batches from what waits, computes them and hands the rows to their jobs.

    A batch that fails is halved until the text at fault is alone; only that one fails. A text is blamed only
    if the model still works on its sample: if not, the engine is broken. A broken engine fails all callers
    and ends the process, so that its supervisor starts a fresh one.

    Args:
        prepare_thread: runs first in the engine's thread.
        on_death: runs last in it, if the engine breaks.
    """

    def __init__(
        self,
        waiting: WaitingTexts,
        *,
        prepare_thread: Callable[[], None],
        on_death: Callable[[BaseException], object],
    ) -> None:
        self._waiting = waiting
        self._prepare_thread = prepare_thread
        self._on_death = on_death
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start to work."""
        self._thread.start()

    def run(self, work: Callable[[], Outcome]) -> Outcome:
        """Do something in the engine's thread, between two batches, and wait for it in this one.

        Raises:
            TextMatchError: the engine has stopped.
            Exception: whatever the work raised.
        """
        errand = Errand(work)
        self._waiting.add_errand(errand)
        return errand.wait()

    def stop(self) -> None:
        """Finish the running batch and end; what still waits fails."""
        self._waiting.close()
        self._thread.join()

    def _run(self) -> None:
        batch: list[Item] = []
        try:
            self._prepare_thread()
            while work := self._waiting.take():
                if isinstance(work, Errand):
                    work.do()
                else:
                    batch = work
                    self._compute(batch)
                # While the engine waits, nothing of the last batch may keep a model that is served no more.
                batch, work = [], []
        except BaseException as error:  # noqa: BLE001 -- whatever it is, nobody may wait for ever
            _log.critical("the engine broke", exc_info=error)
            failure = NotReady("the engine broke; the encoder restarts", retry_delay_seconds=5.0)
            for job in {item.job for item in batch}:
                job.end(failure)
            self._waiting.close(failure)
            self._on_death(error)

    def _compute(self, batch: Sequence[Item]) -> None:
        _observe_queue(batch)
        started = time.perf_counter()
        self._compute_or_halve(batch[0].job.model, batch)
        seconds = time.perf_counter() - started
        self._waiting.note_speed(sum(item.tokens for item in batch), seconds)
        _observe_forward(batch, seconds)
        deliver([job for job in {item.job: None for item in batch} if job.is_over])

    def _compute_or_halve(self, model: EngineModel, batch: Sequence[Item]) -> None:
        try:
            rows = model.forward([item.text for item in batch])
        except Exception as error:  # noqa: BLE001 -- models fail in any way
            if len(batch) == 1:
                self._blame(model, batch[0], error)
                return
            _log.warning("a batch of %d failed and is halved: %r", len(batch), error)
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
    now = time.perf_counter()
    queue_seconds = metrics.STAGE_SECONDS.labels("queue")
    for job in _started_jobs(batch):
        queue_seconds.observe(now - job.added_at)


def _started_jobs(batch: Sequence[Item]) -> list[Job]:
    """Jobs of which this batch has the first texts."""
    taken: dict[Job, int] = {}
    for item in batch:
        taken[item.job] = taken.get(item.job, 0) + 1
    return [job for job, count in taken.items() if count + job.waiting_texts == len(job.texts)]


def _observe_forward(batch: Sequence[Item], seconds: float) -> None:
    token_counts = [item.tokens for item in batch]
    tokens = sum(token_counts)
    metrics.STAGE_SECONDS.labels("forward").observe(seconds)
    metrics.BATCH_TEXTS.observe(len(batch))
    metrics.BATCH_TOKENS.observe(tokens)
    if not batch[0].job.model.is_packed:
        metrics.PADDING_RATIO.observe(padded_tokens(token_counts) / max(tokens, 1))
    metrics.TOKENS_TOTAL.labels("bulk" if batch[0].job.is_bulk else "interactive").inc(tokens)
