"""Inference for a call: admission, tokenisation, computation in shared batches, and pair scores."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from services.encoder import metrics
from services.encoder.batching import CallContext, EngineModel, Job, Rows
from services.encoder.model_registry import (
    EmbeddingScorer,
    RegistryEntry,
    ServedBiEncoder,
    ServedCrossEncoder,
)
from services.encoder.scheduler import Scheduler
from services.encoder.validation import ScoreInput
from textmatch.models.calibration import Scores
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.vectors import Embeddings

# Two keep the inference thread busy: while one batch is computed, the next calls are tokenised.
_TOKENISER_THREADS = 2
# Fewer characters than this are tokenised faster than a thread is woken.
_INLINE_CHARACTERS = 2_000
_BYTES_PER_TOKEN = 4

# Names and emoji are unknown now and then; of a language that the model does not read, most tokens are.
_UNKNOWN_SHARE = 0.2
_MIN_UNKNOWN_TOKENS = 10
# Older calls count less and less, so that a change of the language is noticed.
_RECENT_TOKENS = 5_000
_SECONDS_BETWEEN_WARNINGS = 600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceRequest:
    """What to compute for a call.

    `texts` are all its texts, to estimate its size. `tokenize` turns them into model inputs, one per row of
    the result. `name_item` returns the name of the text at a position in the caller's request.
    """

    model: EngineModel
    texts: Sequence[str]
    max_tokens: int
    tokenize: Callable[[], list[TokenizedText]]
    name_item: Callable[[int], str]


@dataclass(frozen=True)
class InferenceResult:
    """`rows` is (count, columns); `texts` are the model inputs."""

    rows: Rows
    texts: Sequence[TokenizedText]


@dataclass(frozen=True)
class PairScores:
    """For each pair the calibrated score in 0..1, and the raw score that the model returned."""

    scores: Scores
    raw_scores: Scores
    truncated: Sequence[bool]
    model_id: str


class UnknownTokens:
    """Counts the tokens that a model does not know, and warns if they are many of the recent ones.

    All texts of which a model knows nothing have nearly the same embedding. Warnings are ten minutes apart.
    Not safe to call from several threads.
    """

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._ratio = metrics.UNKNOWN_TOKENS_RATIO.labels(model_id)
        self._tokens = 0.0
        self._unknown = 0.0
        self._quiet_until = -math.inf

    def count(self, texts: Sequence[TokenizedText]) -> None:
        """Count the texts of a call."""
        tokens = sum(text.token_count for text in texts)
        unknown = sum(text.unknown_count for text in texts)
        if not tokens:
            return
        self._ratio.observe(unknown / tokens)
        kept = min(1.0, _RECENT_TOKENS / (self._tokens + tokens))
        self._tokens = kept * (self._tokens + tokens)
        self._unknown = kept * (self._unknown + unknown)
        share = self._unknown / self._tokens
        if (
            self._unknown >= _MIN_UNKNOWN_TOKENS
            and share >= _UNKNOWN_SHARE
            and time.monotonic() >= self._quiet_until
        ):
            self._quiet_until = time.monotonic() + _SECONDS_BETWEEN_WARNINGS
            _log.warning(
                "%s does not know %.0f %% of the recent tokens: it cannot read the language of these texts, "
                "and gives different ones nearly the same embedding",
                self._model_id,
                100 * share,
            )


class Pipeline:
    """Runs calls through tokenisers and models. It runs in the event loop and never blocks it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._tokenisers = ThreadPoolExecutor(_TOKENISER_THREADS, thread_name_prefix="tokenise")
        self._unknown_tokens: dict[str, UnknownTokens] = {}

    async def compute(self, request: InferenceRequest, call: CallContext) -> InferenceResult:
        """Compute the texts of a call, in batches shared with other calls.

        Raises:
            Overloaded: too much is queued already.
            DeadlineTooShort: the answer would be late.
            DeadlinePassed: the deadline passed while the texts were queued.
            InvalidInput: naming the texts that the model failed on.
            NotReady: the encoder is shutting down.
        """
        estimates = (len(text.encode()) // _BYTES_PER_TOKEN + 2 for text in request.texts)
        size_tokens = sum(min(request.max_tokens, estimate) for estimate in estimates)
        with self._scheduler.admitted(size_tokens, call):
            texts = await self._tokenize(request)
            job = Job(request.model, texts, call, request.name_item)
            self._scheduler.add(job)
        try:
            return InferenceResult(await job.result(), texts)
        except asyncio.CancelledError:
            self._scheduler.discard(job)
            raise

    async def score_by_cross_encoder(
        self, entry: RegistryEntry[ServedCrossEncoder], wanted: ScoreInput, call: CallContext
    ) -> PairScores:
        """Score each pair of texts by reading both together. Raises the errors of `compute`."""
        has_one_query = len(wanted.firsts) == 1
        firsts = [wanted.firsts[0]] * len(wanted.seconds) if has_one_query else wanted.firsts
        pairs = list(zip(firsts, wanted.seconds, strict=True))
        request = InferenceRequest(
            model=entry.engine_model,
            texts=[*firsts, *wanted.seconds],
            max_tokens=entry.model.max_tokens,
            tokenize=lambda: entry.model.tokenize_pairs(pairs),
            name_item=wanted.name_pair,
        )
        result = await self.compute(request, call)
        truncated = [text.truncated for text in result.texts]
        return PairScores(result.rows[:, 0], result.rows[:, 1], truncated, entry.model.model_id)

    async def score_by_embeddings(
        self,
        entry: RegistryEntry[ServedBiEncoder],
        scorer: EmbeddingScorer,
        wanted: ScoreInput,
        stored: Embeddings | None,
        call: CallContext,
    ) -> PairScores:
        """Score pairs of embeddings by the cosine or by a pair classifier. Raises the errors of `compute`.

        Args:
            entry: the model of the embeddings.
            scorer: the scorer of this model.
            wanted: the texts to compare.
            stored: the second embeddings, (count, dimension), rows of length 1; None: embed `seconds`.
            call: caller, lane and deadline.
        """
        model = entry.model
        first_count = len(wanted.firsts)

        def tokenize() -> list[TokenizedText]:
            firsts = model.tokenize(wanted.firsts, is_query=True)
            return firsts + model.tokenize(wanted.seconds, is_query=False) if wanted.seconds else firsts

        def name_item(position: int) -> str:
            if position < first_count:
                return wanted.name_first(position)
            return wanted.name_second(position - first_count)

        texts = [*wanted.firsts, *wanted.seconds]
        request = InferenceRequest(entry.engine_model, texts, model.max_tokens, tokenize, name_item)
        result = await self.compute(request, call)
        second = result.rows[first_count:] if stored is None else stored
        scores, raw_scores = scorer.score(result.rows[:first_count], second)
        first_cut = np.array([text.truncated for text in result.texts[:first_count]])
        second_cut = np.array([text.truncated for text in result.texts[first_count:]] or [False])
        truncated = np.broadcast_to(first_cut | second_cut, len(second)).tolist()
        return PairScores(scores, raw_scores, truncated, model.model_id)

    def close(self) -> None:
        """End the tokeniser threads."""
        self._tokenisers.shutdown(cancel_futures=True)

    async def _tokenize(self, request: InferenceRequest) -> list[TokenizedText]:
        started = time.perf_counter()
        if sum(map(len, request.texts)) <= _INLINE_CHARACTERS:
            texts = request.tokenize()
        else:
            texts = await asyncio.get_running_loop().run_in_executor(self._tokenisers, request.tokenize)
        metrics.STAGE_SECONDS.labels("tokenise").observe(time.perf_counter() - started)
        metrics.TRUNCATED_TOTAL.inc(sum(text.truncated for text in texts))
        model_id = request.model.model_id
        if model_id not in self._unknown_tokens:
            self._unknown_tokens[model_id] = UnknownTokens(model_id)
        self._unknown_tokens[model_id].count(texts)
        return texts
