"""Weights of the parts of a score, learned from judged queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from textmatch.combination import Calibration, Weights, lexical_evidence

Values = NDArray[np.float64]

_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_DEPTH = 10
# A gain that is less than this many of its standard errors may be chance.
_MIN_STANDARD_ERRORS = 2.0
_NEWTON_STEPS = 50
# Keeps the slope finite where scores separate relevant from irrelevant documents completely.
_RIDGE = 1e-3


@dataclass(frozen=True)
class JudgedCandidates:
    """The candidates of one query, all (count,): what a match explains, and grades, 0 for not relevant.

    `cross_encoder` is nan where a pair was not scored.
    """

    cosine: Values
    bm25: Values
    cross_encoder: Values
    grades: Values

    @cached_property
    def lexical_evidence(self) -> Values:
        """What the shared words say, (count,) in 0..1."""
        return np.array([lexical_evidence(float(one)) for one in self.bm25])


def tune(queries: Sequence[JudgedCandidates], start: Weights) -> Weights:
    """The weights with the highest mean nDCG@10, and a calibration for them.

    The weights stay as they are unless others are better by two standard errors over the queries, so that few
    judgements change little.
    """
    before = ndcg_of(queries, start)
    candidates = [replace(start, lexical=one, rerank=two) for one, two in product(_SHARES, _SHARES)]
    best = max(candidates, key=lambda weights: float(ndcg_of(queries, weights).mean()))
    gains = ndcg_of(queries, best) - before
    error = float(gains.std(ddof=1)) / len(gains) ** 0.5 if len(gains) > 1 else float("inf")
    chosen = best if float(gains.mean()) > _MIN_STANDARD_ERRORS * error else start
    return replace(chosen, calibration=calibrate(queries, chosen))


def ndcg_of(queries: Sequence[JudgedCandidates], weights: Weights) -> Values:
    """nDCG@10 of the candidates in the order of their scores: (queries,)."""
    return np.array([_ndcg(query.grades, combined_scores(query, weights)) for query in queries])


def combined_scores(query: JudgedCandidates, weights: Weights) -> Values:
    """The scores of the candidates before calibration: (count,), as textmatch.combination has them."""
    distance = 1.0 - query.cosine.clip(0.0, 1.0)
    recall = 1.0 - distance * (1.0 - weights.lexical * query.lexical_evidence)
    combined = (1.0 - weights.rerank) * recall + weights.rerank * query.cross_encoder
    is_scored = ~np.isnan(query.cross_encoder)
    mean_raise = float((combined - recall)[is_scored].mean()) if is_scored.any() else 0.0
    scores: Values = np.where(is_scored, combined, recall + mean_raise).clip(0.0, 1.0)
    return scores


def calibrate(queries: Sequence[JudgedCandidates], weights: Weights) -> Calibration | None:
    """How likely a document with a score is relevant, by logistic regression; None without both kinds."""
    scores = np.concatenate([combined_scores(query, weights) for query in queries])
    is_relevant = np.concatenate([query.grades > 0 for query in queries]).astype(np.float64)
    if not 0.0 < is_relevant.mean() < 1.0:
        return None
    inputs = np.column_stack([scores, np.ones_like(scores)])
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


def _ndcg(grades: Values, scores: Values) -> float:
    discounts = 1.0 / np.log2(np.arange(2, _DEPTH + 2))
    gained = grades[np.argsort(-scores, kind="stable")][:_DEPTH]
    ideal = np.sort(grades)[::-1][:_DEPTH]
    best = float(ideal @ discounts[: len(ideal)])
    return float(gained @ discounts[: len(gained)]) / best if best > 0 else 0.0
