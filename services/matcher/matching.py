"""One Match: embed the query, recall candidates, score the pairs, combine."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.matcher import metrics
from services.matcher.combination import combined_score, recall_score
from textmatch.documents import Document
from textmatch.encoder_client import EncoderClient, EncodeResult, ScoreResult
from textmatch.errors import (
    DeadlinePassed,
    DeadlineTooShort,
    DependencyUnavailable,
    InternalError,
    ModelMismatch,
    ModelNotFound,
    NotReady,
    Overloaded,
)
from textmatch.filters import Filter
from textmatch.index.schema import Candidate
from textmatch.index.store import Index

# Kept back from the caller's deadline, so that an answer without scores still gets out.
_ANSWER_RESERVE_SECONDS = 0.01
_ANSWER_RESERVE_SHARE = 0.05


class Degraded(enum.Enum):
    """Why a Match was answered in recall order."""

    RERANK_LATE = "late"
    RERANK_REFUSED = "refused"
    RERANK_UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class MatchOptions:
    """What a caller may ask for, with its defaults."""

    top_k: int = 10
    candidate_count: int = 100
    condition: Filter | None = None
    min_score: float = 0.0
    rerank: bool = True


@dataclass(frozen=True)
class ScoredDocument:
    """A match; `rerank_score` is None if the pair was not scored."""

    document: Document
    score: float
    recall_score: float
    rerank_score: float | None


@dataclass
class Timings:
    """Milliseconds of each stage; a stage that did not run took none."""

    encode_ms: float = 0.0
    recall_ms: float = 0.0
    rerank_ms: float = 0.0
    total_ms: float = 0.0


@dataclass
class MatchResult:
    """Matches, best first, and how they came about."""

    matches: list[ScoredDocument] = field(default_factory=list)
    degraded: Degraded | None = None
    timings: Timings = field(default_factory=Timings)
    bi_encoder_model_id: str = ""
    cross_encoder_model_id: str = ""


class Matcher:
    """Answers queries; holds no state of its own."""

    def __init__(self, encoder: EncoderClient, index: Index, rerank_weight: float) -> None:
        self._encoder = encoder
        self._index = index
        self._rerank_weight = rerank_weight

    async def match(
        self, query: str, options: MatchOptions, *, deadline: float, is_bulk: bool = False
    ) -> MatchResult:
        """The stored texts that mean the same as the query.

        Args:
            deadline: when the caller stops waiting, by `time.monotonic()`.

        Raises:
            DependencyUnavailable: the query cannot be embedded, or Qdrant does not answer.
            ModelMismatch: the index was built by another model than the encoder serves.
        """
        result = MatchResult()
        with _timed(result.timings, "total"):
            await self._match(result, query, options, deadline, is_bulk)
        if result.matches:
            metrics.TOP_SCORE.observe(result.matches[0].score)
        return result

    async def _match(
        self, result: MatchResult, query: str, options: MatchOptions, deadline: float, is_bulk: bool
    ) -> None:
        with _timed(result.timings, "encode"):
            encoded = await self._encode(query, deadline, is_bulk)
        result.bi_encoder_model_id = encoded.model_id
        with _timed(result.timings, "recall"):
            candidates = await self._recall(encoded, options, deadline)
        metrics.CANDIDATES.observe(len(candidates))
        scored: ScoreResult | None = None
        if options.rerank and candidates:
            with _timed(result.timings, "rerank"):
                scored, result.degraded = await self._rerank(query, candidates, deadline, is_bulk)
        if scored:
            result.cross_encoder_model_id = scored.model_id
        matches = self._combine(candidates, scored)
        result.matches = [match for match in matches if match.score >= options.min_score][: options.top_k]

    async def _encode(self, query: str, deadline: float, is_bulk: bool) -> EncodeResult:
        timeout_seconds = deadline - time.monotonic()
        return await self._encoder.encode(
            [query], is_query=True, is_bulk=is_bulk, timeout_seconds=timeout_seconds
        )

    async def _recall(self, encoded: EncodeResult, options: MatchOptions, deadline: float) -> list[Candidate]:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                if not await self._check_collection(encoded.model_id):
                    return []
                return await self._index.recall(
                    encoded.embeddings[0],
                    options.candidate_count,
                    options.condition,
                    model_id=encoded.model_id,
                )
        except TimeoutError:
            raise DeadlinePassed("the index did not answer before the deadline") from None

    async def _check_collection(self, model_id: str) -> bool:
        """Whether there is a collection; it must be the model's own."""
        collection = await self._index.collection()
        if collection != model_id:
            collection = await self._index.refresh_collection()
        if collection and collection != model_id:
            raise ModelMismatch(index_model_id=collection, encoder_model_id=model_id)
        return bool(collection)

    async def _rerank(
        self, query: str, candidates: list[Candidate], deadline: float, is_bulk: bool
    ) -> tuple[ScoreResult | None, Degraded | None]:
        """Scores of the candidates, or why there are none."""
        texts = [candidate.document.text for candidate in candidates]
        remaining_seconds = deadline - time.monotonic()
        reserve_seconds = max(_ANSWER_RESERVE_SECONDS, remaining_seconds * _ANSWER_RESERVE_SHARE)
        if remaining_seconds <= reserve_seconds:
            return None, _degraded(Degraded.RERANK_LATE)
        try:
            scored = await self._encoder.score(
                query, texts, is_bulk=is_bulk, timeout_seconds=remaining_seconds - reserve_seconds
            )
        except DeadlinePassed:
            return None, _degraded(Degraded.RERANK_LATE)
        except (Overloaded, DeadlineTooShort):
            return None, _degraded(Degraded.RERANK_REFUSED)
        except (DependencyUnavailable, NotReady, ModelNotFound, InternalError):
            return None, _degraded(Degraded.RERANK_UNAVAILABLE)
        return scored, None

    def _combine(self, candidates: list[Candidate], scored: ScoreResult | None) -> list[ScoredDocument]:
        """Best first; equal scores keep the order of recall."""
        matches = [
            self._scored_document(candidate, scored.scores[position] if scored else None)
            for position, candidate in enumerate(candidates)
        ]
        return sorted(matches, key=lambda match: match.score, reverse=True)

    def _scored_document(self, candidate: Candidate, rerank: float | None) -> ScoredDocument:
        recall = recall_score(candidate.cosine)
        score = recall if rerank is None else combined_score(recall, rerank, self._rerank_weight)
        return ScoredDocument(candidate.document, score, recall, rerank)


def _degraded(reason: Degraded) -> Degraded:
    metrics.DEGRADED_TOTAL.labels(reason.value).inc()
    return reason


@contextmanager
def _timed(timings: Timings, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        setattr(timings, f"{stage}_ms", seconds * 1e3)
        metrics.MATCH_STAGE_SECONDS.labels(stage).observe(seconds)
