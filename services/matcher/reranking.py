"""Scoring pairs as far as the deadline allows, the best candidates first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.matcher.answers import Degraded
from services.matcher.patience import patiently
from services.matcher.scoring_speed import ScoringSpeed
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
from textmatch.vectors import Embeddings

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
class Scores:
    """0..1 for the first texts; `degraded` says what kept the others from being scored."""

    values: list[float] = field(default_factory=list)
    model_id: str = ""
    degraded: Degraded | None = None


class Reranker:
    """Knows from the encoder's answers how fast it is, and asks for no more than it can do in time."""

    def __init__(self, encoder: EncoderClient) -> None:
        self._encoder = encoder
        self._speeds = {is_bulk: ScoringSpeed() for is_bulk in (False, True)}

    async def score(self, query: str, texts: Sequence[str], *, deadline: float, is_bulk: bool) -> Scores:
        """Score the query with each text by the cross-encoder, in order, until time runs out."""
        scores = Scores()
        finish = deadline - answer_reserve_seconds(deadline)
        while len(scores.values) < len(texts) and scores.degraded is None:
            await self._score_chunk(scores, query, texts[len(scores.values) :], finish, is_bulk)
        return scores

    async def classify(
        self, query: str, embeddings: Embeddings, *, deadline: float, is_bulk: bool, model: str
    ) -> Scores:
        """Score the query with each (count, dimension) embedding by the pair classifier: all or none."""
        timeout_seconds = (deadline - time.monotonic()) / 2
        if timeout_seconds <= 0:
            return Scores(degraded=Degraded.RERANK_LATE)
        try:
            result = await self._encoder.classify(
                query, embeddings, is_bulk=is_bulk, timeout_seconds=timeout_seconds, model=model
            )
        except (*_LATE, *_REFUSED, *_UNAVAILABLE) as error:
            return Scores(degraded=_degraded(error))
        return Scores(result.scores, result.model_id)

    async def _score_chunk(
        self, scores: Scores, query: str, texts: Sequence[str], finish: float, is_bulk: bool
    ) -> None:
        started = time.monotonic()
        seconds_left = finish - started
        speed = self._speeds[is_bulk]
        chunk = texts[: _chunk_size(speed, query, texts, seconds_left)]
        if not chunk:
            scores.degraded = Degraded.RERANK_LATE
            return
        try:
            result = await patiently(
                lambda: self._encoder.score(
                    query, chunk, is_bulk=is_bulk, timeout_seconds=finish - time.monotonic()
                ),
                deadline=finish,
                is_bulk=is_bulk,
            )
        except (*_LATE, *_REFUSED, *_UNAVAILABLE) as error:
            scores.degraded = _degraded(error)
            if isinstance(error, _LATE):
                speed.observe_late(query, chunk, time.monotonic() - started)
            return
        speed.observe(query, chunk, time.monotonic() - started)
        scores.values += result.scores
        scores.model_id = result.model_id


def answer_reserve_seconds(deadline: float) -> float:
    """What must be left of the caller's time once everything is known."""
    share_seconds = (deadline - time.monotonic()) * _ANSWER_RESERVE_SHARE
    return min(max(ANSWER_RESERVE_SECONDS, share_seconds), _MAX_ANSWER_RESERVE_SECONDS)


def _chunk_size(speed: ScoringSpeed, query: str, texts: Sequence[str], seconds_left: float) -> int:
    """How many texts to ask for next; 0 if there is no time for a single one."""
    if seconds_left <= 0:
        return 0
    if not speed.is_known:
        return len(texts) if seconds_left >= _AMPLE_SECONDS else _FIRST_CHUNK
    sure = speed.affordable(query, texts, seconds_left * _SURE_SHARE)
    return max(sure, speed.affordable(query, texts[:_SMALLEST_CHUNK], seconds_left))


def _degraded(error: TextMatchError) -> Degraded:
    if isinstance(error, _LATE):
        return Degraded.RERANK_LATE
    return Degraded.RERANK_REFUSED if isinstance(error, _REFUSED) else Degraded.RERANK_UNAVAILABLE
