"""From hits to matches: the scores of what was found, put together and ordered."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from services.matcher.answers import ScoredDocument
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
    recall_score,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A hit with its recall score and, after a classifier stage, that score."""

    hit: Hit
    recall_score: float
    pair_classifier_score: float | None = None


def ranked(hits: Iterable[Hit], weights: Weights) -> list[Candidate]:
    """Best first; equal ones in an order that is always the same."""
    candidates = [Candidate(hit, _recall_score(hit, weights)) for hit in hits]
    return sorted(candidates, key=lambda one: (-one.recall_score, str(one.hit.point)))


def weights_of(notes: Mapping[str, object], default: Weights) -> Weights:
    """The weights that were tuned for a collection, or else the default."""
    noted = notes.get(WEIGHTS_NOTE)
    if not isinstance(noted, Mapping):
        return default
    try:
        return from_mapping(noted)
    except InvalidInput as error:
        _log.warning("the weights noted beside the collection are not used", extra={"error": str(error)})
        return default


def combine(
    found: Sequence[tuple[Candidate, Document]], scores: Sequence[float], weights: Weights
) -> list[ScoredDocument]:
    """All candidates, best first, of which the first have been scored.

    Scoring lifts or lowers most scores alike. So that a candidate gains nothing from not being scored, it is
    given what scoring did to the others on average. Equal scores are in the order of recall, then of ids.
    """
    recalled = [candidate.recall_score for candidate, _ in found]
    combined = [
        combined_score(recall, score, weights) for recall, score in zip(recalled, scores, strict=False)
    ]
    mean_raise = (sum(combined) - sum(recalled[: len(combined)])) / max(len(combined), 1)
    combined += [recall + mean_raise for recall in recalled[len(combined) :]]
    matches = [
        _scored_document(candidate, document, one, score, weights)
        for (candidate, document), one, score in zip_longest(found, combined, scores)
    ]
    return sorted(matches, key=lambda match: (-match.combined_score, -match.recall_score, match.document.id))


def _scored_document(
    candidate: Candidate, document: Document, combined: float, rerank: float | None, weights: Weights
) -> ScoredDocument:
    combined = min(max(combined, 0.0), 1.0)
    return ScoredDocument(
        document=document,
        score=calibrated(combined, weights),
        recall_score=candidate.recall_score,
        combined_score=combined,
        rerank_score=rerank,
        parts=_parts(candidate.hit),
        pair_classifier_score=candidate.pair_classifier_score,
    )


def _recall_score(hit: Hit, weights: Weights) -> float:
    if hit.fused_ranks is not None:
        return min(hit.fused_ranks, 1.0)
    return recall_score(_parts(hit), weights)


def _parts(hit: Hit) -> ScoreComponents:
    return ScoreComponents(hit.cosine, hit.bm25)
