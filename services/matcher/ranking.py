"""From hits to matches: fuses their scores and sorts them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from textmatch.documents import Document
from textmatch.errors import InvalidInput
from textmatch.index.search import Hit
from textmatch.score_fusion import (
    WEIGHTS_NOTE,
    ScoreComponents,
    Weights,
    calibrated,
    combined_score,
    from_mapping,
    lexical_evidence,
    recall_score,
)
from textmatch.types import Match, ScoreExplanation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A hit with its recall score, and its pair classifier score if there was a classifier stage."""

    hit: Hit
    recall_score: float
    pair_classifier_score: float | None = None


def ranked(hits: Iterable[Hit], weights: Weights) -> list[Candidate]:
    """Candidates by descending recall score; equal scores are sorted by point id."""
    candidates = [Candidate(hit, _recall_score(hit, weights)) for hit in hits]
    return sorted(candidates, key=lambda one: (-one.recall_score, str(one.hit.point)))


def weights_of(notes: Mapping[str, object], default: Weights) -> Weights:
    """The tuned weights in the notes of a collection, or the default."""
    noted = notes.get(WEIGHTS_NOTE)
    if not isinstance(noted, Mapping):
        return default
    try:
        return from_mapping(noted)
    except InvalidInput as error:
        _log.warning(
            "the tuned weights of the collection are invalid and not used", extra={"error": str(error)}
        )
        return default


def combine(
    found: Sequence[tuple[Candidate, Document]], scores: Sequence[float], weights: Weights
) -> list[Match]:
    """All candidates as matches, best first. `scores` are those of the first candidates.

    Scoring shifts most scores by a similar amount. A candidate that was not scored gets the mean shift of the
    others, so it gains nothing. Equal scores are sorted by recall score, then by id.
    """
    recalled = [candidate.recall_score for candidate, _ in found]
    combined = [
        combined_score(recall, score, weights) for recall, score in zip(recalled, scores, strict=False)
    ]
    mean_shift = (sum(combined) - sum(recalled[: len(combined)])) / max(len(combined), 1)
    combined += [recall + mean_shift for recall in recalled[len(combined) :]]
    bounded = [min(max(score, 0.0), 1.0) for score in combined]
    parts = sorted(
        zip_longest(found, bounded, scores),
        key=lambda part: (-part[1], -part[0][0].recall_score, part[0][1].id),
    )
    return [_match(candidate, document, one, score, weights) for (candidate, document), one, score in parts]


def _match(
    candidate: Candidate, document: Document, combined: float, rerank: float | None, weights: Weights
) -> Match:
    hit, calibration = candidate.hit, weights.calibration
    return Match(
        document=document,
        score=calibrated(combined, weights),
        recall_score=candidate.recall_score,
        rerank_score=rerank,
        explanation=ScoreExplanation(
            cosine=hit.cosine,
            bm25=hit.bm25,
            lexical_evidence=lexical_evidence(hit.bm25),
            pair_classifier_score=candidate.pair_classifier_score,
            combined_score=combined,
            lexical_weight=weights.lexical,
            rerank_weight=weights.rerank,
            calibration=(calibration.slope, calibration.intercept) if calibration else None,
        ),
    )


def _recall_score(hit: Hit, weights: Weights) -> float:
    if hit.fused_ranks is not None:
        return min(hit.fused_ranks, 1.0)
    return recall_score(ScoreComponents(hit.cosine, hit.bm25), weights)
