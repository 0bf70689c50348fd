"""Weights of the parts of a score, learned from judged queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

import numpy as np

from textmatch.ranking_metrics import Ranks, Values, best_first, ndcg
from textmatch.score_fusion import Calibration, Weights, lexical_evidence

_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_DEPTH = 10
_FOLDS = 5
# A gain that is less than this many of its standard errors may be chance.
_MIN_STANDARD_ERRORS = 2.0
_NEWTON_STEPS = 50
# Keeps the slope finite where scores separate relevant from irrelevant documents completely.
_RIDGE = 1e-3


@dataclass(frozen=True)
class JudgedCandidates:
    """The candidates of one query, all (count,): what a match explains, and grades, 0 for not relevant.

    Attributes:
        cross_encoder: nan where a pair was not scored.
        missed_grades: (missed,) of the judged documents that are no candidates.
        depth: how many a match scores and returns, the best of recall first; None: all.
    """

    cosine: Values
    bm25: Values
    cross_encoder: Values
    grades: Values
    missed_grades: Values = field(default_factory=lambda: np.zeros(0))
    depth: int | None = None

    @cached_property
    def lexical_evidence(self) -> Values:
        """What the shared words say, (count,) in 0..1."""
        return np.array([lexical_evidence(float(one)) for one in self.bm25])

    @cached_property
    def ideal(self) -> Values:
        """The ten highest grades, filled up with 0: (10,)."""
        return _first_ten(-np.sort(-np.concatenate([self.grades, self.missed_grades])))

    def ranked_grades(self, scores: Values) -> Values:
        """The grades in the order of scores (count,), filled up with 0: (10,). -inf: not returned."""
        return _first_ten(np.where(np.isfinite(scores), self.grades, 0.0)[best_first(scores)])


@dataclass(frozen=True)
class Tuning:
    """Weights learned from all queries, and what such weights do to queries that they were not learned from.

    `before` and `after` are the nDCG@10 of each query, (queries,): with the weights at the start, and with
    weights that were learned from the other folds.
    """

    weights: Weights
    before: Values
    after: Values

    @property
    def gain(self) -> float:
        """Of the mean nDCG@10."""
        return float((self.after - self.before).mean())

    @property
    def gain_error(self) -> float:
        """The standard error of the gain; infinite for a single query."""
        return _standard_error(self.after - self.before)

    @property
    def is_better(self) -> bool:
        """Whether the gain is more than chance."""
        return self.gain > _MIN_STANDARD_ERRORS * self.gain_error


def tune(queries: Sequence[JudgedCandidates], start: Weights, seed: int = 0) -> Tuning:
    """The weights with the highest mean nDCG@10, and a calibration for them.

    The weights stay as they are unless others are better by two standard errors over the queries, so that few
    judgements change little. Of weights that are equally good, the nearest to the start are taken.

    Args:
        seed: decides the folds of the cross-validation.
    """
    grid = _Grid.of(queries, start)
    everything = np.arange(len(queries))
    chosen = grid.weights[grid.choose(everything)]
    before, after = grid.ndcg[0], np.empty(len(queries))
    for fold in np.array_split(np.random.default_rng(seed).permutation(everything), _FOLDS):
        after[fold] = grid.ndcg[grid.choose(np.setdiff1d(everything, fold)), fold]
    return Tuning(replace(chosen, calibration=calibrate(queries, chosen)), before, after)


def ndcg_of(queries: Sequence[JudgedCandidates], weights: Weights) -> Values:
    """nDCG@10 of the candidates in the order of their scores: (queries,)."""
    grades = np.array([query.ranked_grades(combined_scores(query, weights)) for query in queries])
    return ndcg(grades, np.array([query.ideal for query in queries]), _DEPTH)


def combined_scores(query: JudgedCandidates, weights: Weights) -> Values:
    """The scores of the candidates before calibration: (count,), as textmatch.score_fusion has them.

    -inf for those that a match would not return, because too many others come before them in recall.
    """
    distance = 1.0 - query.cosine.clip(0.0, 1.0)
    recall = 1.0 - distance * (1.0 - weights.lexical * query.lexical_evidence)
    is_returned = np.zeros(len(recall), dtype=bool)
    is_returned[best_first(recall)[: query.depth]] = True
    combined = (1.0 - weights.rerank) * recall + weights.rerank * query.cross_encoder
    is_scored = ~np.isnan(query.cross_encoder) & is_returned
    mean_raise = float((combined - recall)[is_scored].mean()) if is_scored.any() else 0.0
    scores = np.where(is_scored, combined, recall + mean_raise).clip(0.0, 1.0)
    returned: Values = np.where(is_returned, scores, -np.inf)
    return returned


def calibrate(queries: Sequence[JudgedCandidates], weights: Weights) -> Calibration | None:
    """How likely a document with a score is relevant, by logistic regression; None without both kinds."""
    scores = np.concatenate([combined_scores(query, weights) for query in queries])
    is_returned = np.isfinite(scores)
    is_relevant = np.concatenate([query.grades > 0 for query in queries])[is_returned].astype(np.float64)
    if not 0.0 < is_relevant.mean() < 1.0:
        return None
    inputs = np.column_stack([scores[is_returned], np.ones_like(is_relevant)])
    parameters = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        likely = 0.5 * (1.0 + np.tanh(inputs @ parameters / 2.0))
        gradient = inputs.T @ (likely - is_relevant) + _RIDGE * parameters
        curvature = (inputs * (likely * (1.0 - likely))[:, None]).T @ inputs + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        parameters -= step
        if float(np.abs(step).max()) < 1e-9:
            break
    slope, intercept = parameters
    return Calibration(float(slope), float(intercept)) if slope > 0 else None


@dataclass(frozen=True)
class _Grid:
    """Weights to choose from, those of the start first and then the nearest; `ndcg` (weights, queries)."""

    weights: list[Weights]
    ndcg: Values

    @classmethod
    def of(cls, queries: Sequence[JudgedCandidates], start: Weights) -> _Grid:
        def distance(weights: Weights) -> float:
            return abs(weights.lexical - start.lexical) + abs(weights.rerank - start.rerank)

        others = [replace(start, lexical=one, rerank=two) for one, two in product(_SHARES, _SHARES)]
        weights = [start, *sorted(others, key=distance)]
        return cls(weights, np.array([ndcg_of(queries, one) for one in weights]))

    def choose(self, queries: Ranks) -> int:
        """The best weights for some of the queries, if they are better than the start beyond chance."""
        if len(queries) < 2:
            return 0
        # Rounded, so that sums in another order make no difference.
        best = int(self.ndcg[:, queries].mean(axis=1).round(12).argmax())
        gains = self.ndcg[best, queries] - self.ndcg[0, queries]
        return best if float(gains.mean()) > _MIN_STANDARD_ERRORS * _standard_error(gains) else 0


def _standard_error(values: Values) -> float:
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("inf")


def _first_ten(grades: Values) -> Values:
    first = np.zeros(_DEPTH)
    first[: len(grades)] = grades[:_DEPTH]
    return first
