"""One Match: embed the query, recall candidates, score the pairs, combine."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

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
from textmatch.index.connection import CollectionGone
from textmatch.index.schema import Candidate
from textmatch.index.store import Index

Answer = TypeVar("Answer")

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
            ModelMismatch: the encoder does not serve the model that the index was built by.
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
        try:
            candidates = await self._candidates(result, query, options, deadline, is_bulk)
        except CollectionGone:
            # It was dropped after the alias was read: the next reading finds its successor.
            candidates = await self._candidates(result, query, options, deadline, is_bulk)
        metrics.CANDIDATES.observe(len(candidates))
        scored: ScoreResult | None = None
        if options.rerank and candidates:
            with _timed(result.timings, "rerank"):
                scored, result.degraded = await self._rerank(query, candidates, deadline, is_bulk)
        if scored:
            result.cross_encoder_model_id = scored.model_id
        matches = self._combine(candidates, scored)
        result.matches = [match for match in matches if match.score >= options.min_score][: options.top_k]

    async def _candidates(
        self, result: MatchResult, query: str, options: MatchOptions, deadline: float, is_bulk: bool
    ) -> list[Candidate]:
        with _timed(result.timings, "encode"):
            collection, encoded = await self._encode(query, deadline, is_bulk)
        result.bi_encoder_model_id = encoded.model_id
        if not collection:
            return []
        with _timed(result.timings, "recall"):
            return await _before(
                deadline,
                self._index.recall(
                    encoded.embeddings[0], options.candidate_count, options.condition, model_id=collection
                ),
            )

    async def _encode(self, query: str, deadline: float, is_bulk: bool) -> tuple[str, EncodeResult]:
        """The collection in use, or "", and the query's embedding by the model that built it."""

        async def encode(model: str) -> EncodeResult:
            timeout_seconds = deadline - time.monotonic()
            return await self._encoder.encode(
                [query], is_query=True, is_bulk=is_bulk, timeout_seconds=timeout_seconds, model=model
            )

        collection = await _before(deadline, self._index.collection())
        try:
            return collection, await encode(collection)
        except ModelMismatch:
            # The alias may have been switched, and the old model taken away, since it was read.
            latest = await _before(deadline, self._index.refresh_collection())
            if latest == collection:
                raise
            return latest, await encode(latest)

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


async def _before(deadline: float, answer: Awaitable[Answer]) -> Answer:
    """What the index says.

    Raises:
        DeadlinePassed: it does not say it in time.
    """
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await answer
    except TimeoutError:
        raise DeadlinePassed("the index did not answer before the deadline") from None


@contextmanager
def _timed(timings: Timings, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        setattr(timings, f"{stage}_ms", seconds * 1e3)
        metrics.MATCH_STAGE_SECONDS.labels(stage).observe(seconds)
