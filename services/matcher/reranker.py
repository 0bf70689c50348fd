"""Scores candidates by the encoder's cross-encoder or pair classifier: the wanted ones, as time allows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.matcher.deadlines import ScoringThroughput, TimeBudget
from services.matcher.ranking import Shortlist
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

# These errors degrade an answer. All others are raised.
_REFUSED = (Overloaded, DeadlineTooShort)
_UNAVAILABLE = (DependencyUnavailable, NotReady, ModelNotFound, InternalError)
_DEGRADING = (DeadlinePassed, *_REFUSED, *_UNAVAILABLE)


@dataclass
class RerankResult:
    """Scores 0..1, in the order of scoring. `degraded` is the reason why the others were not scored."""

    values: list[float] = field(default_factory=list)
    model_id: str = ""
    degraded: DegradedReason | None = None


class Reranker:
    """Learns how fast the encoder is, and requests only what it can score in time."""

    def __init__(self, encoder: EncoderClient) -> None:
        self._encoder = encoder
        # By model, and whether the work is bulk.
        self._throughputs: defaultdict[tuple[str, bool], ScoringThroughput] = defaultdict(ScoringThroughput)

    async def score(
        self, shortlist: Shortlist, *, budget: TimeBudget, is_bulk: bool, model: str
    ) -> RerankResult:
        """Score the query with its candidates by a cross-encoder, while scores are wanted and time is left.

        The scores are recorded in the shortlist.

        Args:
            model: name or id of the cross-encoder; "" means the encoder's default one.
        """
        result = RerankResult()
        while result.degraded is None and (positions := shortlist.to_score()):
            await self._score_chunk(result, shortlist, positions, budget, is_bulk, model)
        return result

    async def classify(
        self, query: str, embeddings: Embeddings, *, budget: TimeBudget, is_bulk: bool, model: str
    ) -> RerankResult:
        """Score the query with each (count, dimension) embedding by the pair classifier: all or none."""
        timeout_seconds = budget.classify_timeout_seconds()
        if timeout_seconds <= 0:
            return RerankResult(degraded=DegradedReason.RERANK_LATE)
        try:
            scored = await self._encoder.classify(
                query, embeddings, is_bulk=is_bulk, timeout_seconds=timeout_seconds, model=model
            )
        except _DEGRADING as error:
            return RerankResult(degraded=_reason(error))
        return RerankResult(scored.scores.tolist(), scored.model_id)

    async def _score_chunk(
        self,
        result: RerankResult,
        shortlist: Shortlist,
        positions: Sequence[int],
        budget: TimeBudget,
        is_bulk: bool,
        model: str,
    ) -> None:
        throughput, query = self._throughputs[model, is_bulk], shortlist.query(positions)
        started = time.monotonic()
        chunk = throughput.next_chunk(query, shortlist.texts(positions), budget.answer_by - started)
        if not chunk:
            result.degraded = DegradedReason.RERANK_LATE
            return
        try:
            scored = await RETRY_OVERLOADED.call_until(
                budget.answer_by if is_bulk else 0.0,
                lambda: self._encoder.score(
                    query,
                    chunk,
                    is_bulk=is_bulk,
                    timeout_seconds=budget.answer_by - time.monotonic(),
                    model=model,
                ),
            )
        except _DEGRADING as error:
            result.degraded = _reason(error)
            if isinstance(error, DeadlinePassed):
                throughput.observe_late(query, chunk, time.monotonic() - started)
            return
        throughput.observe(query, chunk, time.monotonic() - started)
        scores = scored.scores.tolist()
        shortlist.record(positions[: len(chunk)], scores)
        result.values += scores
        result.model_id = scored.model_id


def _reason(error: TextMatchError) -> DegradedReason:
    if isinstance(error, DeadlinePassed):
        return DegradedReason.RERANK_LATE
    return DegradedReason.RERANK_REFUSED if isinstance(error, _REFUSED) else DegradedReason.RERANK_UNAVAILABLE
