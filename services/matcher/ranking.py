"""From hits to matches: chooses the candidates that get pair scores, fuses the parts of scores, sorts.

A pair score moves a candidate within bounds: those of the lowest and the highest pair score. So it is often
known beforehand that it cannot change the answer. Example: the tenth best of ten matches is at 0.8 at least;
a candidate at 0.3 that a pair score can raise to 0.7 needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from textmatch.documents import Document, Passage, document_key
from textmatch.index.search import Hit
from textmatch.score_fusion import Fusion, ScoreComponents, probability, to_single
from textmatch.types import Match, MatchOptions, Rerank, ScoreExplanation

# Ascending: the log odds, the lexical part, whether the text differs from the query, the id.
_SortKey: TypeAlias = tuple[float, float, bool, str]
# Scores of the first candidates may decide about the others. Fewer at a time cost more calls than they save.
_MIN_AUTO_CHUNK = 8


class QueryPart(NamedTuple):
    """A query, or a passage of one that is longer than the model reads."""

    text: str
    passage: Passage | None = None


@dataclass(frozen=True)
class Candidate:
    """A hit with the parts of its score, and its pair classifier score if there was a classifier stage.

    `query` is what it was found by. `is_selected` says whether the rule selects it for a pair score. Only the
    best of the candidates with the same `group` is returned. Without groups, each has its own.
    """

    query: QueryPart
    hit: Hit
    parts: ScoreComponents
    pair_classifier_score: float | None = None
    is_selected: bool = False

    @property
    def group(self) -> str:
        """The value that it is grouped by as JSON, or the id of its point."""
        return str(self.hit.point) if self.hit.group is None else self.hit.group


# A candidate that is still stored, with its document.
FoundCandidate: TypeAlias = tuple[Candidate, Document]


@dataclass(frozen=True)
class RerankRule:
    """Which candidates get a pair score, and which candidates can be returned.

    Attributes:
        depth: the first candidates, of which it selects; 0 if no pair is scored.
        is_auto: it selects only candidates that look nearly the same as the query, or that may end on either
            side of `min_score`, and requests scores only while they can change the answer.
        other_count: how many candidates that are not selected can be returned, each of another group.
    """

    fusion: Fusion
    top_k: int
    min_score: float
    depth: int
    is_auto: bool
    other_count: int

    @classmethod
    def of(cls, options: MatchOptions, default_depth: int, fusion: Fusion) -> RerankRule:
        """The rule for a match. `default_depth` is for options without `rerank_depth`."""
        limit = options.rerank_depth or default_depth
        depth, other_count = max(limit, options.top_k), 0
        if options.rerank is Rerank.NONE:
            depth, other_count = 0, options.top_k
        elif options.rerank is Rerank.AUTO:
            depth, other_count = min(limit, fusion.pair_depth), options.top_k
        # Compared with scores of single precision.
        min_score = to_single(options.min_score)
        return cls(fusion, options.top_k, min_score, depth, options.rerank is Rerank.AUTO, other_count)

    def selects(self, parts: ScoreComponents) -> bool:
        """Whether a candidate of the first `depth` gets a pair score."""
        if not self.is_auto:
            return True
        return self._is_near_threshold(parts) or (
            parts.cosine is not None and parts.cosine >= self.fusion.pair_from
        )

    def _is_near_threshold(self, parts: ScoreComponents) -> bool:
        """Whether a pair score can put the candidate on either side of `min_score`.

        A candidate that is exactly at it is left as it is: `min_score` is its score in an earlier answer.
        """
        lowest, highest = self.fusion.logits_with_pair(parts)
        if self.is_enough(lowest) or not self.is_enough(highest):
            return False
        return probability(self.fusion.logit(parts)) != self.min_score

    def shortlisted(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates that can be returned, in the same order: the selected ones, and the best others.

        Of the others, only the best of a group can be. If no others are returned, and the first candidates
        have too few groups, the best of further groups are selected too.
        """
        chosen, groups, others = list[Candidate](), set[str](), set[str]()
        has_only_selected = self.depth > 0 and self.other_count == 0
        for position, candidate in enumerate(candidates):
            is_new = candidate.group not in groups and len(groups) < self.top_k
            is_first = position < self.depth and self.selects(candidate.parts)
            if is_first or (has_only_selected and is_new):
                chosen.append(replace(candidate, is_selected=True))
                groups.add(candidate.group)
            elif candidate.group not in others and len(others) < self.other_count:
                chosen.append(candidate)
                others.add(candidate.group)
        return chosen

    def is_enough(self, logit: float) -> bool:
        """Whether a match with these log odds reaches `min_score`."""
        return probability(logit) >= self.min_score

    def bounds(self, candidate: Candidate) -> tuple[float, float]:
        """The lowest and the highest log odds that the candidate may end with, scored or not."""
        logit = self.fusion.logit(candidate.parts)
        if not candidate.is_selected or candidate.parts.pair is not None:
            return logit, logit
        lowest, highest = self.fusion.logits_with_pair(candidate.parts)
        return min(lowest, logit), max(highest, logit)


class Shortlist:
    """The candidates that can be returned, best first, with the pair scores that are known so far."""

    def __init__(self, rule: RerankRule, found: Sequence[FoundCandidate]) -> None:
        self.found = list(found)
        self._rule = rule
        self._bounds = [rule.bounds(candidate) for candidate, _ in found]

    @property
    def selected_count(self) -> int:
        """How many candidates the rule selects."""
        return sum(candidate.is_selected for candidate, _ in self.found)

    def to_score(self) -> list[int]:
        """Positions of the candidates to score next, best first; empty if no more pair scores are wanted.

        They are scored with the same text: `query`.
        """
        positions = self._unscored()
        if self._rule.is_auto:
            positions = self.undecided()[: max(self._rule.top_k, _MIN_AUTO_CHUNK)]
        return [one for one in positions if self._query(one) == self._query(positions[0])]

    def query(self, positions: Sequence[int]) -> str:
        """The text to score candidates with that `to_score` has returned: the query, or a passage of it."""
        return self._query(positions[0]).text

    def undecided(self) -> list[int]:
        """Positions of the candidates whose missing pair scores can change the answer.

        Others cannot: they end below `min_score` or below candidates of `top_k` groups, for any pair scores.
        """
        best: dict[str, float] = {}
        for (candidate, _), (lowest, _) in zip(self.found, self._bounds, strict=True):
            best[candidate.group] = max(lowest, best.get(candidate.group, lowest))
        kth_best = float("-inf")
        if len(best) >= self._rule.top_k:
            kth_best = sorted(best.values(), reverse=True)[self._rule.top_k - 1]
        return [
            position
            for position in self._unscored()
            if self._bounds[position][1] >= kth_best and self._rule.is_enough(self._bounds[position][1])
        ]

    def texts(self, positions: Sequence[int]) -> list[str]:
        """The texts of candidates; a passage follows the title of its document, if there is one."""
        return [_text_to_score(self.found[position][1]) for position in positions]

    def record(self, positions: Sequence[int], scores: Sequence[float]) -> None:
        """Keep pair scores."""
        for position, score in zip(positions, scores, strict=True):
            candidate, document = self.found[position]
            candidate = replace(candidate, parts=replace(candidate.parts, pair=score))
            self.found[position] = candidate, document
            self._bounds[position] = self._rule.bounds(candidate)

    def _query(self, position: int) -> QueryPart:
        return self.found[position][0].query

    def _unscored(self) -> list[int]:
        return [
            position
            for position, (candidate, _) in enumerate(self.found)
            if candidate.is_selected and candidate.parts.pair is None
        ]


def ranked(hits: Iterable[tuple[QueryPart, Hit]], fusion: Fusion) -> list[Candidate]:
    """Candidates by descending recall score. Ties are broken by the lexical part, then by point id.

    A document is one candidate, with the score of its best passage, for the passage of the query that fits it
    best.
    """
    candidates = [Candidate(query, hit, ScoreComponents(hit.cosine, hit.lexical)) for query, hit in hits]
    candidates.sort(key=lambda one: _sort_key(one.parts, fusion, str(one.hit.point)))
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        best.setdefault(document_key(str(candidate.hit.point)), candidate)
    return list(best.values())


def classified(scored: Iterable[tuple[Candidate, float]]) -> list[Candidate]:
    """Candidates by descending score of the pair classifier. Ties keep their order."""
    return sorted(
        (replace(candidate, pair_classifier_score=score) for candidate, score in scored),
        key=lambda one: -(one.pair_classifier_score or 0.0),
    )


def combine(found: Iterable[FoundCandidate], fusion: Fusion) -> list[Match]:
    """The best candidate of each group as a match, best first, scored by the parts that it has.

    Ties are broken by the lexical part, then in favour of a text that is identical to the query, then by id.
    """

    def key(one: FoundCandidate) -> _SortKey:
        candidate, document = one
        return _sort_key(
            candidate.parts, fusion, document.id, is_different=document.text != candidate.query.text
        )

    best: dict[str, FoundCandidate] = {}
    for one in sorted(found, key=key):
        best.setdefault(one[0].group, one)
    return [_match(candidate, document, fusion) for candidate, document in best.values()]


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
        query_passage=candidate.query.passage,
    )


def _text_to_score(document: Document) -> str:
    title = document.attributes.get("title") if document.passage else None
    return f"{title}\n{document.text}" if isinstance(title, str) and title.strip() else document.text
