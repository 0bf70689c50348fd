"""Learns the weights of the components of a score from judged queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

import numpy as np

from textmatch.ranking_metrics import Values, best_first, ndcg
from textmatch.score_fusion import ScoreCalibration, Weights, lexical_evidence

_SHARES = tuple(tenths / 10 for tenths in range(11))
_DEPTH = 10
_FOLDS = 5
# A smaller gain, in standard errors of the gain, counts as chance.
_MIN_STANDARD_ERRORS = 2.0
_NEWTON_STEPS = 50
# Keeps the slope finite if the scores separate relevant from other documents completely.
_RIDGE = 1e-3


@dataclass(frozen=True)
class JudgedCandidates:
    """The candidates of one query: the components of their scores and their grades, (count,) each.

    Attributes:
        cross_encoder: NaN where the pair was not scored.
        grades: 0 for not relevant.
        missed_grades: grades of the judged documents that are not candidates, (missed,).
        depth: how many candidates a match returns, best recall score first; None: all.
    """

    cosine: Values
    bm25: Values
    cross_encoder: Values
    grades: Values
    missed_grades: Values = field(default_factory=lambda: np.zeros(0))
    depth: int | None = None

    @cached_property
    def lexical_evidence(self) -> Values:
        """BM25 as evidence in 0..1: (count,)."""
        return np.array([lexical_evidence(float(one)) for one in self.bm25])

    @cached_property
    def ideal(self) -> Values:
        """The ten highest grades, padded with 0: (10,)."""
        return _first_ten(-np.sort(-np.concatenate([self.grades, self.missed_grades])))

    def ranked_grades(self, scores: Values) -> Values:
        """The grades in the order of scores (count,), padded with 0: (10,). A score of -inf counts as 0."""
        return _first_ten(np.where(np.isfinite(scores), self.grades, 0.0)[best_first(scores)])


@dataclass(frozen=True)
class Tuning:
    """Weights learned from all queries, and the effect of tuning measured by cross-validation.

    `before` and `after` are the nDCG@10 of each query, (queries,): with the weights at the start, and with
    weights that were learned from the other folds.
    """

    weights: Weights
    before: Values
    after: Values

    @property
    def gain(self) -> float:
        """The gain of the mean nDCG@10."""
        return float((self.after - self.before).mean())

    @property
    def gain_error(self) -> float:
        """The standard error of the gain; infinite for a single query."""
        return _standard_error(self.after - self.before)

    @property
    def is_better(self) -> bool:
        """Whether the gain is more than two standard errors."""
        return self.gain > _MIN_STANDARD_ERRORS * self.gain_error


def tune(queries: Sequence[JudgedCandidates], start: Weights, seed: int = 0) -> Tuning:
    """The weights with the highest mean nDCG@10, and a calibration for them.

    The weights change only if others are better by two standard errors over the queries. Of equally good
    weights, those nearest to the start win.

    Args:
        seed: of the folds for cross-validation.
    """
    weights = _nearest_first(start)
    ndcg_by_weights = np.array([ndcg_of(queries, one) for one in weights])
    chosen = weights[_best(ndcg_by_weights)]
    after = np.empty(len(queries))
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(queries)), _FOLDS):
        after[fold] = ndcg_by_weights[_best(np.delete(ndcg_by_weights, fold, axis=1)), fold]
    return Tuning(replace(chosen, calibration=calibrate(queries, chosen)), ndcg_by_weights[0], after)


def ndcg_of(queries: Sequence[JudgedCandidates], weights: Weights) -> Values:
    """nDCG@10 of the candidates in the order of their scores: (queries,)."""
    grades = np.array([query.ranked_grades(combined_scores(query, weights)) for query in queries])
    return ndcg(grades, np.array([query.ideal for query in queries]), _DEPTH)


def combined_scores(query: JudgedCandidates, weights: Weights) -> Values:
    """The scores of the candidates before calibration, as in textmatch.score_fusion: (count,).

    -inf for candidates that a match would not return, because they are beyond `depth` in recall.
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


def calibrate(queries: Sequence[JudgedCandidates], weights: Weights) -> ScoreCalibration | None:
    """Fit the probability of relevance to scores; None if all or no documents are relevant."""
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
    return ScoreCalibration(float(slope), float(intercept)) if slope > 0 else None


def _nearest_first(start: Weights) -> list[Weights]:
    """All weights to choose from: the start, then the others by their distance to it."""
    grid = [replace(start, lexical=one, rerank=two) for one, two in product(_SHARES, _SHARES)]
    return [
        start,
        *sorted(grid, key=lambda one: abs(one.lexical - start.lexical) + abs(one.rerank - start.rerank)),
    ]


def _best(ndcg_by_weights: Values) -> int:
    """The row of (weights, queries) with the highest mean; row 0 unless the gain is beyond chance."""
    if ndcg_by_weights.shape[1] < 2:
        return 0
    # Rounded, because the order of a sum changes its last digits.
    best = int(ndcg_by_weights.mean(axis=1).round(12).argmax())
    gains = ndcg_by_weights[best] - ndcg_by_weights[0]
    return best if float(gains.mean()) > _MIN_STANDARD_ERRORS * _standard_error(gains) else 0


def _standard_error(values: Values) -> float:
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("inf")


def _first_ten(grades: Values) -> Values:
    first = np.zeros(_DEPTH)
    first[: len(grades)] = grades[:_DEPTH]
    return first
