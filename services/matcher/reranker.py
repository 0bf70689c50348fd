"""Scoring pairs as far as the deadline allows, the best candidates first.

How fast the encoder scores pairs just now, learned from its answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from textmatch.encoder_client import EncoderClient
from textmatch.errors import (
    DeadlinePassed,
    DeadlineTooShort,
    DependencyUnavailable,
    InternalError,
    ModelNotFound,
    NotReady,
    Overloaded,
    TextMatchError,
)
from textmatch.retry import RETRY_OVERLOADED
from textmatch.types import DegradedReason
from textmatch.vectors import Embeddings

# How much one answer says about the next.
_NEWEST_SHARE = 0.3
# Then the encoder may be another one, or have other work.
_FORGOTTEN_AFTER_SECONDS = 5.0
# Models read no more than their tokens allow, and these are about as many.
_MAX_READ_CHARACTERS = 2_000
# A pair costs something however short it is.
_PAIR_CHARACTERS = 40


class ScoringThroughput:
    """Seconds for each character that the model reads; unknown if nothing was scored lately."""

    def __init__(self) -> None:
        self._seconds_per_character = 0.0
        self._observed_at = float("-inf")

    @property
    def is_known(self) -> bool:
        """Whether anything was scored lately."""
        return time.monotonic() - self._observed_at < _FORGOTTEN_AFTER_SECONDS

    def observe(self, query: str, texts: Sequence[str], seconds: float) -> None:
        """So long it took to score these."""
        measured = seconds / _characters(query, texts)
        share = _NEWEST_SHARE if self.is_known else 1.0
        self._seconds_per_character += share * (measured - self._seconds_per_character)
        self._observed_at = time.monotonic()

    def observe_late(self, query: str, texts: Sequence[str], seconds: float) -> None:
        """These were not scored within so many seconds."""
        if seconds > self.seconds(query, texts):
            self.observe(query, texts, seconds)

    def seconds(self, query: str, texts: Sequence[str]) -> float:
        """How long it will take to score these."""
        return self._seconds_per_character * _characters(query, texts)

    def affordable(self, query: str, texts: Sequence[str], seconds: float) -> int:
        """How many of the first texts can be scored in so many seconds."""
        for count, text in enumerate(texts):
            seconds -= self.seconds(query, [text])
            if seconds < 0.0:
                return count
        return len(texts)


def _characters(query: str, texts: Sequence[str]) -> int:
    return sum(_PAIR_CHARACTERS + min(len(query) + len(text), _MAX_READ_CHARACTERS) for text in texts)


# Kept back from the caller's deadline, so that an answer still gets out.
ANSWER_RESERVE_SECONDS = 0.01
_ANSWER_RESERVE_SHARE = 0.15
_MAX_ANSWER_RESERVE_SECONDS = 0.25
# What fits into this share of the time is scored at once; the rest in chunks of a share of what is left.
_SURE_SHARE = 0.4
_FIRST_CHUNK = 8
_SMALLEST_CHUNK = 4
# Nobody is so short of time with more than this that an unknown speed matters.
_AMPLE_SECONDS = 2.0

_LATE = (DeadlinePassed,)
_REFUSED = (Overloaded, DeadlineTooShort)
_UNAVAILABLE = (DependencyUnavailable, NotReady, ModelNotFound, InternalError)


@dataclass
class RerankResult:
    """0..1 for the first texts; `degraded` says what kept the others from being scored."""

    values: list[float] = field(default_factory=list)
    model_id: str = ""
    degraded: DegradedReason | None = None


class Reranker:
    """Knows from the encoder's answers how fast it is, and asks for no more than it can do in time."""

    def __init__(self, encoder: EncoderClient) -> None:
        self._encoder = encoder
        self._speeds = {is_bulk: ScoringThroughput() for is_bulk in (False, True)}

    async def score(
        self, query: str, texts: Sequence[str], *, deadline: float, is_bulk: bool
    ) -> RerankResult:
        """Score the query with each text by the cross-encoder, in order, until time runs out."""
        scores = RerankResult()
        finish = deadline - answer_reserve_seconds(deadline)
        while len(scores.values) < len(texts) and scores.degraded is None:
            await self._score_chunk(scores, query, texts[len(scores.values) :], finish, is_bulk)
        return scores

    async def classify(
        self, query: str, embeddings: Embeddings, *, deadline: float, is_bulk: bool, model: str
    ) -> RerankResult:
        """Score the query with each (count, dimension) embedding by the pair classifier: all or none."""
        timeout_seconds = (deadline - time.monotonic()) / 2
        if timeout_seconds <= 0:
            return RerankResult(degraded=DegradedReason.RERANK_LATE)
        try:
            result = await self._encoder.classify(
                query, embeddings, is_bulk=is_bulk, timeout_seconds=timeout_seconds, model=model
            )
        except (*_LATE, *_REFUSED, *_UNAVAILABLE) as error:
            return RerankResult(degraded=_degraded(error))
        return RerankResult(result.scores.tolist(), result.model_id)

    async def _score_chunk(
        self, scores: RerankResult, query: str, texts: Sequence[str], finish: float, is_bulk: bool
    ) -> None:
        started = time.monotonic()
        seconds_left = finish - started
        speed = self._speeds[is_bulk]
        chunk = texts[: _chunk_size(speed, query, texts, seconds_left)]
        if not chunk:
            scores.degraded = DegradedReason.RERANK_LATE
            return
        try:
            result = await RETRY_OVERLOADED.call_until(
                finish if is_bulk else 0.0,
                lambda: self._encoder.score(
                    query, chunk, is_bulk=is_bulk, timeout_seconds=finish - time.monotonic()
                ),
            )
        except (*_LATE, *_REFUSED, *_UNAVAILABLE) as error:
            scores.degraded = _degraded(error)
            if isinstance(error, _LATE):
                speed.observe_late(query, chunk, time.monotonic() - started)
            return
        speed.observe(query, chunk, time.monotonic() - started)
        scores.values += result.scores.tolist()
        scores.model_id = result.model_id


def answer_reserve_seconds(deadline: float) -> float:
    """What must be left of the caller's time once everything is known."""
    share_seconds = (deadline - time.monotonic()) * _ANSWER_RESERVE_SHARE
    return min(max(ANSWER_RESERVE_SECONDS, share_seconds), _MAX_ANSWER_RESERVE_SECONDS)


def _chunk_size(speed: ScoringThroughput, query: str, texts: Sequence[str], seconds_left: float) -> int:
    """How many texts to ask for next; 0 if there is no time for a single one."""
    if seconds_left <= 0:
        return 0
    if not speed.is_known:
        return len(texts) if seconds_left >= _AMPLE_SECONDS else _FIRST_CHUNK
    sure = speed.affordable(query, texts, seconds_left * _SURE_SHARE)
    return max(sure, speed.affordable(query, texts[:_SMALLEST_CHUNK], seconds_left))


def _degraded(error: TextMatchError) -> DegradedReason:
    if isinstance(error, _LATE):
        return DegradedReason.RERANK_LATE
    return DegradedReason.RERANK_REFUSED if isinstance(error, _REFUSED) else DegradedReason.RERANK_UNAVAILABLE
