"""From hits to matches: fuses the parts of their scores and sorts them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TypeAlias

from textmatch.documents import Document
from textmatch.index.search import Hit
from textmatch.score_fusion import Fusion, ScoreComponents, probability
from textmatch.types import Match, ScoreExplanation

# Ascending: the log odds, the lexical part, whether the text differs from the query, the id.
_SortKey: TypeAlias = tuple[float, float, bool, str]


@dataclass(frozen=True)
class Candidate:
    """A hit with the parts of its score, and its pair classifier score if there was a classifier stage."""

    hit: Hit
    parts: ScoreComponents
    pair_classifier_score: float | None = None


def ranked(hits: Iterable[Hit], fusion: Fusion) -> list[Candidate]:
    """Candidates by descending recall score. Ties are broken by the lexical part, then by point id."""
    candidates = [Candidate(hit, ScoreComponents(hit.cosine, hit.lexical)) for hit in hits]
    return sorted(candidates, key=lambda one: _sort_key(one.parts, fusion, str(one.hit.point)))


def classified(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[Candidate]:
    """Candidates by descending score of the pair classifier. Ties keep their order."""
    scored = [
        replace(candidate, pair_classifier_score=score)
        for candidate, score in zip(candidates, scores, strict=True)
    ]
    return sorted(scored, key=lambda one: -(one.pair_classifier_score or 0.0))


def combine(
    query: str, found: Sequence[tuple[Candidate, Document]], pair_scores: Sequence[float], fusion: Fusion
) -> list[Match]:
    """All candidates as matches, best first.

    Ties are broken by the lexical part, then in favour of a text that is identical to the query, then by id.

    Args:
        pair_scores: those of the first candidates. The others are scored by the parts that they have.
    """
    scored = [
        (replace(candidate, parts=replace(candidate.parts, pair=pair)), document)
        for (candidate, document), pair in zip_longest(found, pair_scores)
    ]

    def key(one: tuple[Candidate, Document]) -> _SortKey:
        candidate, document = one
        return _sort_key(candidate.parts, fusion, document.id, is_different=document.text != query)

    return [_match(candidate, document, fusion) for candidate, document in sorted(scored, key=key)]


def _sort_key(parts: ScoreComponents, fusion: Fusion, one_id: str, *, is_different: bool = True) -> _SortKey:
    return -fusion.logit(parts), -(parts.lexical or 0.0), is_different, one_id


def _match(candidate: Candidate, document: Document, fusion: Fusion) -> Match:
    parts = candidate.parts
    return Match(
        document=document,
        score=probability(fusion.logit(parts)),
        recall_score=probability(fusion.logit(parts.without_pair())),
        rerank_score=parts.pair,
        explanation=ScoreExplanation(
            cosine=parts.cosine,
            lexical=parts.lexical,
            pair_classifier_score=candidate.pair_classifier_score,
            weights=fusion.model(parts),
        ),
    )
