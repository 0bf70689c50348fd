"""The one thread that runs models.

A call's way through the service: let in, tokenised, computed.

The three ways to score pairs: a cross-encoder, the cosine, a classifier over two embeddings.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from services.encoder import metrics
from services.encoder.batching import (
    CallContext,
    EngineModel,
    EngineTask,
    Job,
    Outcome,
    Rows,
    deliver,
    padded_tokens,
)
from services.encoder.model_registry import BiEncoder, CrossEncoder, EmbeddingScorer, Scores, Served
from services.encoder.scheduler import Item, Scheduler
from services.encoder.validation import ScoreInput, stored_embeddings
from textmatch.errors import InvalidInput, NotReady
from textmatch.models.fast_tokenizer import TokenizedText

_log = logging.getLogger(__name__)


class EngineBroken(Exception):
    """A model fails on a text that it has worked on before."""


class InferenceThread:
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
        waiting: Scheduler,
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
        errand = EngineTask(work)
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
                if isinstance(work, EngineTask):
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


# Two keep the engine fed: while one batch is computed the next calls are tokenised.
_TOKENISER_THREADS = 2
# Fewer characters than this are tokenised faster than a thread is woken.
_INLINE_CHARACTERS = 2_000
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class InferenceRequest:
    """What to compute for a call.

    `texts` are all its texts, to judge how large it is; `tokenize` turns them into what the model reads, one
    for each row wanted; `name_item` says what the caller calls the text at a position.
    """

    model: EngineModel
    texts: Sequence[str]
    max_tokens: int
    tokenize: Callable[[], list[TokenizedText]]
    name_item: Callable[[int], str]


@dataclass(frozen=True)
class InferenceResult:
    """`rows` is (count, columns); `texts` is what the model read."""

    rows: Rows
    texts: Sequence[TokenizedText]


class Pipeline:
    """Runs in the event loop, which it never holds up: tokenisers and models run in threads."""

    def __init__(self, waiting: Scheduler) -> None:
        self._waiting = waiting
        self._tokenisers = ThreadPoolExecutor(_TOKENISER_THREADS, thread_name_prefix="tokenise")

    async def compute(self, work: InferenceRequest, urgency: CallContext) -> InferenceResult:
        """Compute a call's texts together with those of other calls.

        Raises:
            Overloaded: too much waits already.
            DeadlineTooShort: the answer would come too late.
            DeadlinePassed: it did not come in time.
            InvalidInput: naming the texts that the model failed on.
            NotReady: the encoder is ending.
        """
        size_tokens = sum(min(work.max_tokens, _estimate_tokens(text)) for text in work.texts)
        with self._waiting.admitted(size_tokens, urgency):
            texts = await self._tokenize(work)
            job = Job(work.model, texts, urgency, work.name_item)
            self._waiting.add(job)
        try:
            return InferenceResult(await job.result(), texts)
        except asyncio.CancelledError:
            self._waiting.discard(job)
            raise

    def close(self) -> None:
        """End the threads."""
        self._tokenisers.shutdown(cancel_futures=True)

    async def _tokenize(self, work: InferenceRequest) -> list[TokenizedText]:
        started = time.perf_counter()
        if sum(map(len, work.texts)) <= _INLINE_CHARACTERS:
            texts = work.tokenize()
        else:
            texts = await asyncio.get_running_loop().run_in_executor(self._tokenisers, work.tokenize)
        metrics.STAGE_SECONDS.labels("tokenise").observe(time.perf_counter() - started)
        metrics.TRUNCATED_TOTAL.inc(sum(text.truncated for text in texts))
        return texts


def _estimate_tokens(text: str) -> int:
    return len(text.encode()) // _BYTES_PER_TOKEN + 2


@dataclass(frozen=True)
class PairScores:
    """Aligned with the input. `scores` are 0..1 and calibrated, `raw_scores` as the model had them before."""

    scores: Scores
    raw_scores: Scores
    truncated: Sequence[bool]
    model_id: str


async def score_by_cross_encoder(
    served: Served[CrossEncoder], wanted: ScoreInput, urgency: CallContext, pipeline: Pipeline
) -> PairScores:
    """Score each pair of texts by reading both together.

    Raises:
        InvalidInput: embeddings were given; or naming the pairs that the model failed on.
    """
    if wanted.embeddings:
        raise InvalidInput.of_field("embeddings", "a cross-encoder reads texts, not embeddings")
    query_alone = len(wanted.firsts) == 1
    firsts = [wanted.firsts[0]] * len(wanted.seconds) if query_alone else wanted.firsts
    pairs = list(zip(firsts, wanted.seconds, strict=True))
    work = InferenceRequest(
        model=served.engine_model,
        texts=[*firsts, *wanted.seconds],
        max_tokens=served.model.max_tokens,
        tokenize=lambda: served.model.tokenize_pairs(pairs),
        name_item=wanted.name_pair,
    )
    computed = await pipeline.compute(work, urgency)
    return PairScores(
        scores=computed.rows[:, 0],
        raw_scores=computed.rows[:, 1],
        truncated=[text.truncated for text in computed.texts],
        model_id=served.model.model_id,
    )


async def score_by_embeddings(
    served: Served[BiEncoder],
    scorer: EmbeddingScorer,
    wanted: ScoreInput,
    urgency: CallContext,
    pipeline: Pipeline,
    *,
    max_texts: int,
) -> PairScores:
    """Score each pair of embeddings, by the model's cosine or its pair classifier.

    Raises:
        InvalidInput: the embeddings given do not fit the model; or naming the texts that the model failed on.
    """
    model = served.model
    stored = stored_embeddings(wanted.embeddings, model.dimension, max_texts) if wanted.embeddings else None
    first_count = len(wanted.firsts)

    def tokenize() -> list[TokenizedText]:
        firsts = model.tokenize(wanted.firsts, is_query=True)
        return firsts + model.tokenize(wanted.seconds, is_query=False) if wanted.seconds else firsts

    def name_item(position: int) -> str:
        if position < first_count:
            return wanted.name_first(position)
        return wanted.name_second(position - first_count)

    work = InferenceRequest(
        served.engine_model, [*wanted.firsts, *wanted.seconds], model.max_tokens, tokenize, name_item
    )
    computed = await pipeline.compute(work, urgency)
    first = computed.rows[:first_count]
    second = computed.rows[first_count:] if stored is None else stored
    scores, raw_scores = scorer.score(first, second)
    first_cut = np.array([text.truncated for text in computed.texts[:first_count]])
    second_cut = np.array([text.truncated for text in computed.texts[first_count:]] or [False])
    truncated = np.broadcast_to(first_cut | second_cut, len(second)).tolist()
    return PairScores(scores, raw_scores, truncated, model.model_id)
