"""Inference for a call: admission, tokenization, computation in shared batches, and pair scores."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from services.encoder import metrics
from services.encoder.batching import CallContext, CallLoad, EngineModel, Job, Rows
from services.encoder.model_registry import (
    EmbeddingScorer,
    RegistryEntry,
    ServedBiEncoder,
    ServedCrossEncoder,
)
from services.encoder.scheduler import CallSize, Scheduler
from services.encoder.tokenizer_pool import TokenizerPool
from services.encoder.validation import EncodeInput, ScoreInput
from textmatch.errors import InvalidInput, Violation, raise_violations
from textmatch.models.calibration import Scores
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.v1 import error_reason_pb2
from textmatch.vectors import Embeddings, normalise

# Each lane has one. A GPU needs more to be busy.
_MIN_TOKENIZER_THREADS = 2
_CORES_PER_TOKENIZER_THREAD = 2
_BYTES_PER_TOKEN = 4
# A text has at least so many: those that begin and end it.
_SPECIAL_TOKENS = 2

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

    `row_bytes` are the bytes of UTF-8 of the text, or of both texts, of each row of the result. `tokenize`
    turns the rows from a start to an end into model inputs. `name_item` returns the name of a row in the
    caller's request.
    """

    model: EngineModel
    row_bytes: Sequence[int]
    max_tokens: int
    tokenize: Callable[[int, int], list[TokenizedText]]
    name_item: Callable[[int], str]

    def estimated_tokens(self, rows: range) -> int:
        """About how many tokens these rows have."""
        return sum(self._row_tokens(row) for row in rows)

    def parts(self, limit_tokens: int) -> list[range]:
        """All rows, divided into parts of at most about this many tokens, or of one row."""
        parts: list[range] = []
        start = tokens = 0
        for row in range(len(self.row_bytes)):
            row_tokens = self._row_tokens(row)
            if row > start and tokens + row_tokens > limit_tokens:
                parts.append(range(start, row))
                start, tokens = row, 0
            tokens += row_tokens
        parts.append(range(start, len(self.row_bytes)))
        return parts

    def _row_tokens(self, row: int) -> int:
        return min(self.max_tokens, self.row_bytes[row] // _BYTES_PER_TOKEN + _SPECIAL_TOKENS)


@dataclass(frozen=True)
class InferenceResult:
    """`rows` is (count, columns); `texts` are the model inputs."""

    rows: Rows
    texts: Sequence[TokenizedText]


@dataclass(frozen=True)
class PairScores:
    """For each pair the calibrated score in 0..1, and the raw score that the model returned.

    `class_scores` is (count, labels), the probabilities of a cross-encoder's classes; None without classes.
    """

    scores: Scores
    raw_scores: Scores
    truncated: Sequence[bool]
    model_id: str
    labels: Sequence[str] = ()
    class_scores: Scores | None = None


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


def utf8_bytes(text: str) -> int:
    """The size of a text; takes no time for ASCII."""
    return len(text) if text.isascii() else len(text.encode())


class Pipeline:
    """Runs calls through tokenizers and models. It runs in the event loop and never blocks it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        cores = os.cpu_count() or 1
        self._tokenizers = TokenizerPool(max(_MIN_TOKENIZER_THREADS, cores // _CORES_PER_TOKENIZER_THREAD))
        self._unknown_tokens: dict[str, UnknownTokens] = {}

    async def compute(self, request: InferenceRequest, call: CallContext) -> InferenceResult:
        """Compute the texts of a call, in batches shared with other calls.

        A call of more tokens than half a queue is computed in parts, one after the other.

        Raises:
            Overloaded: too much is queued already.
            DeadlineTooShort: the answer would be late.
            DeadlinePassed: the deadline passed while the texts were queued.
            InvalidInput: naming the texts that the model failed on, or that have more tokens than it reads
                and are to be refused; or the call has too many bytes of text.
            NotReady: the encoder is shutting down.
        """
        text_bytes = sum(request.row_bytes)
        size = CallSize(
            request.model,
            request.estimated_tokens(range(len(request.row_bytes))),
            text_bytes,
            self._tokenizers.seconds(text_bytes, call),
        )
        results: list[InferenceResult] = []
        violations: list[Violation] = []
        with self._scheduler.admitted(size, call) as load:
            for rows in request.parts(self._scheduler.part_tokens):
                try:
                    results.append(await self._compute_part(request, rows, call, load))
                except InvalidInput as error:
                    violations += error.violations
        if violations:
            raise InvalidInput(violations)
        if len(results) == 1:
            return results[0]
        texts = [text for result in results for text in result.texts]
        return InferenceResult(np.concatenate([result.rows for result in results]), texts)

    async def _compute_part(
        self, request: InferenceRequest, rows: range, call: CallContext, load: CallLoad
    ) -> InferenceResult:
        texts = await self._tokenize(request, rows, call)
        job = Job(
            request.model,
            texts,
            call,
            lambda position: request.name_item(rows.start + position),
            load,
            request.estimated_tokens(rows),
        )
        self._scheduler.add(job)
        try:
            return InferenceResult(await job.result(), texts)
        except asyncio.CancelledError:
            self._scheduler.discard(job)
            raise

    async def embed(
        self, entry: RegistryEntry[ServedBiEncoder], wanted: EncodeInput, call: CallContext
    ) -> InferenceResult:
        """The model's own outputs, before `EncodeInput.shaped`. Raises the errors of `compute`."""
        model, texts = entry.model, wanted.texts
        request = InferenceRequest(
            model=entry.engine_model,
            row_bytes=[utf8_bytes(text) for text in texts],
            max_tokens=model.max_tokens,
            tokenize=lambda start, stop: model.tokenize(
                texts[start:stop], is_query=wanted.is_query, truncation=wanted.truncation
            ),
            name_item="texts[{}]".format,
        )
        return await self.compute(request, call)

    async def score_by_cross_encoder(
        self, entry: RegistryEntry[ServedCrossEncoder], wanted: ScoreInput, call: CallContext
    ) -> PairScores:
        """Score each pair of texts by reading both together. Raises the errors of `compute`."""
        has_one_query = len(wanted.firsts) == 1
        firsts = [wanted.firsts[0]] * len(wanted.seconds) if has_one_query else wanted.firsts
        pairs = list(zip(firsts, wanted.seconds, strict=True))
        request = InferenceRequest(
            model=entry.engine_model,
            row_bytes=[utf8_bytes(first) + utf8_bytes(second) for first, second in pairs],
            max_tokens=entry.model.max_tokens,
            tokenize=lambda start, stop: entry.model.tokenize_pairs(
                pairs[start:stop], truncation=wanted.truncation
            ),
            name_item=wanted.name_pair,
        )
        result = await self.compute(request, call)
        truncated = [text.truncated for text in result.texts]
        labels = entry.model.labels
        return PairScores(
            scores=result.rows[:, 0],
            raw_scores=result.rows[:, 1],
            truncated=truncated,
            model_id=entry.model.model_id,
            labels=labels,
            class_scores=result.rows[:, 2:] if labels else None,
        )

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
        tokenize_texts = partial(model.tokenize, truncation=wanted.truncation)

        def tokenize(start: int, stop: int) -> list[TokenizedText]:
            firsts = wanted.firsts[start:stop]
            seconds = wanted.seconds[max(0, start - first_count) : max(0, stop - first_count)]
            return [
                *(tokenize_texts(firsts, is_query=True) if firsts else ()),
                *(tokenize_texts(seconds, is_query=False) if seconds else ()),
            ]

        def name_item(position: int) -> str:
            if position < first_count:
                return wanted.name_first(position)
            return wanted.name_second(position - first_count)

        row_bytes = [utf8_bytes(text) for text in (*wanted.firsts, *wanted.seconds)]
        request = InferenceRequest(entry.engine_model, row_bytes, model.max_tokens, tokenize, name_item)
        result = await self.compute(request, call)
        embeddings = normalise(result.rows)
        second = embeddings[first_count:] if stored is None else stored
        scores, raw_scores = scorer.score(embeddings[:first_count], second)
        first_cut = np.array([text.truncated for text in result.texts[:first_count]])
        second_cut = np.array([text.truncated for text in result.texts[first_count:]] or [False])
        truncated = np.broadcast_to(first_cut | second_cut, len(second)).tolist()
        return PairScores(scores, raw_scores, truncated, model.model_id)

    def close(self) -> None:
        """End the tokenizer threads."""
        self._tokenizers.close()

    async def _tokenize(
        self, request: InferenceRequest, rows: range, call: CallContext
    ) -> list[TokenizedText]:
        started = time.perf_counter()
        texts = await self._tokenizers.tokenize(request.tokenize, rows, request.row_bytes, call)
        metrics.STAGE_SECONDS.labels("tokenise").observe(time.perf_counter() - started)
        _refuse_long(request, rows, texts)
        metrics.TRUNCATED_TOTAL.inc(sum(text.truncated for text in texts))
        model_id = request.model.model_id
        if model_id not in self._unknown_tokens:
            self._unknown_tokens[model_id] = UnknownTokens(model_id)
        self._unknown_tokens[model_id].count(texts)
        return texts


def _refuse_long(request: InferenceRequest, rows: range, texts: Sequence[TokenizedText]) -> None:
    """Refuse the texts that were tokenized to be refused."""
    reason = error_reason_pb2.ERROR_REASON_TEXT_TOO_LARGE
    raise_violations(
        Violation(
            request.name_item(row),
            reason,
            f"has {text.whole_count:,} tokens; the model reads {text.token_count:,}",
        )
        if text.whole_count is not None
        else None
        for row, text in zip(rows, texts, strict=True)
    )
