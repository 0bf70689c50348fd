"""Fits the models of textmatch.score_fusion to judged queries, and measures what that changes.

Each model is a logistic regression of relevance on the parts of a score. Candidates without a judgement count
as not relevant. A ridge pulls the weights towards the default ones, so 50 queries are enough. Five-fold
cross-validation measures the models on queries that they were not fitted on.

With pair scores it also chooses where they pay: from which cosine on, and for how many candidates. Of the
choices that rank held-out queries about as well as the best one, it takes the one with the fewest pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmatch.ranking_metrics import Values, best_first, calibration_error, ndcg
from textmatch.score_fusion import NEVER, PAIR_LOGIT_LIMIT, PART_SETS, Fusion, ScoreModel

_DEPTH = 10
_FOLDS = 5
# A smaller gain, in standard errors of the gain, counts as chance.
_MIN_STANDARD_ERRORS = 2.0
# A fall of nDCG@10 within it counts as none.
_NDCG_TOLERANCE = 0.005
# The choices for Fusion.pair_from, the most frugal one first, and for Fusion.pair_depth.
_PAIR_FROM = (NEVER, 0.98, 0.96, 0.94, 0.92, *(step / 20 for step in range(18, 5, -1)), 0.0, -1.0)
_PAIR_DEPTHS = (5, 10, 15, 20, 30, 40)
# A choice that ranks worse by less than this, in nDCG@10, ranks as well.
_CHOICE_TOLERANCE = 0.002
# The ridge, in judged candidates of average uncertainty for each weight.
_RIDGE = 2.0
_NEWTON_STEPS = 100
# The parts of a complete answer, and those that recall knows.
_COMPLETE = "cosine_lexical_pair"
_RECALL = "cosine_lexical"
_TOLERANCE = 1e-9
_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class JudgedCandidates:
    """The candidates of one query: the parts of their scores and their grades, (count,) each.

    Attributes:
        lexical: NaN where the query has no terms.
        pair: the score of the cross-encoder; NaN where the pair was not scored.
        grades: 0 for not relevant.
        missed_grades: grades of the judged documents that are not candidates, (missed,).
        weight: of each candidate in the fit.
    """

    cosine: Values
    lexical: Values
    pair: Values
    grades: Values
    missed_grades: Values = field(default_factory=lambda: np.zeros(0))
    weight: float = 1.0

    @cached_property
    def is_relevant(self) -> Values:
        """1 or 0: (count,)."""
        return (self.grades > 0).astype(np.float64)

    @cached_property
    def ideal(self) -> Values:
        """The ten highest grades, padded with 0: (10,)."""
        return _first_ten(-np.sort(-np.concatenate([self.grades, self.missed_grades])))

    def ranked_grades(self, scores: Values) -> Values:
        """The grades in the order of scores (count,), padded with 0: (10,). A score of -inf counts as 0."""
        return _first_ten(np.where(np.isfinite(scores), self.grades, 0.0)[best_first(scores)])

    def parts(self, names: Sequence[str]) -> Values:
        """The inputs of a model: (count, parts), with pair scores as logits and NaN for missing parts."""
        columns = {"cosine": self.cosine, "lexical": self.lexical, "pair": self._pair_logits}
        return np.column_stack([columns[name] for name in names])

    @cached_property
    def _pair_logits(self) -> Values:
        lowest = 1.0 / (1.0 + np.exp(PAIR_LOGIT_LIMIT))
        bounded = self.pair.clip(lowest, 1.0 - lowest)
        logits: Values = np.log(bounded / (1.0 - bounded))
        return logits


@dataclass(frozen=True)
class Quality:
    """One fusion and one set of parts: nDCG@10 and mean log loss of each query, (queries,), and the ECE.

    Queries without such parts have a log loss of NaN.
    """

    ndcg: Values
    log_loss: Values
    calibration_error: float


@dataclass(frozen=True)
class Tuning:
    """Models fitted to all queries, and the effect of fitting measured by cross-validation.

    Attributes:
        held_out: for each query, models that were fitted to the other folds.
        before: the quality of the present models, by set of parts. Sets that no candidate has are missing.
        after: the quality of the held-out models.
    """

    fusion: Fusion
    held_out: list[Fusion]
    before: dict[str, Quality]
    after: dict[str, Quality]

    @property
    def parts(self) -> str:
        """The largest set of parts: the one of complete answers."""
        return list(self.after)[-1]

    @property
    def ndcg_gains(self) -> Values:
        """The gain in nDCG@10 of each query, for complete answers: (queries,)."""
        return self.after[self.parts].ndcg - self.before[self.parts].ndcg

    @property
    def log_loss_gains(self) -> Values:
        """How much the log loss of each query falls, as the mean of all sets of parts: (queries,)."""
        falls = [self.before[name].log_loss - self.after[name].log_loss for name in self.after]
        mean: Values = np.nan_to_num(np.array(falls)).mean(axis=0)
        return mean

    @property
    def is_better(self) -> bool:
        """Whether the log loss falls by more than two standard errors, and nDCG@10 does not fall."""
        gains = self.log_loss_gains
        is_likelier = float(gains.mean()) > _MIN_STANDARD_ERRORS * standard_error(gains)
        return is_likelier and float(self.ndcg_gains.mean()) >= -_NDCG_TOLERANCE


def tune(queries: Sequence[JudgedCandidates], present: Fusion, default: Fusion, seed: int = 0) -> Tuning:
    """Fit all models, and measure the present and the fitted ones on held-out queries.

    Args:
        default: the models that few judgements move a little. They do not depend on earlier fits, so
            fitting again to the same queries changes nothing.
        seed: of the folds for cross-validation.
    """
    fusions = [present] * len(queries)
    before = measure(queries, fusions)
    folds = np.array_split(np.random.default_rng(seed).permutation(len(queries)), _FOLDS)
    is_other = [~np.isin(np.arange(len(queries)), fold) for fold in folds]
    for fold, others in zip(folds, is_other, strict=True):
        fitted = fit([query for query, is_used in zip(queries, others, strict=True) if is_used], default)
        for position in fold:
            fusions[position] = fitted
    choices = _PairChoices.of(queries, fusions)
    for fold, others in zip(folds, is_other, strict=True):
        for position in fold:
            fusions[position] = choices.applied(fusions[position], others)
    # What no candidate shows stays as it is, such as the choice of pairs without a cross-encoder.
    kept: dict[str, Any] = {name: getattr(present, name) for name in PART_SETS if name not in before}
    kept |= {"pair_from": present.pair_from, "pair_depth": present.pair_depth}
    fusion = replace(fit(queries, default), **kept)
    fusion = choices.applied(fusion, np.ones(len(queries), dtype=bool))
    return Tuning(fusion, fusions, before, measure(queries, fusions))


@dataclass(frozen=True)
class _PairChoices:
    """What each choice of `pair_from` and `pair_depth` costs and gives: (queries, choices) each.

    Attributes:
        choices: the pairs of `pair_from` and `pair_depth`, the most frugal first. The first scores nothing.
        gains: in nDCG@10, over recall alone.
        counts: how many pairs are scored.
        weights: of the queries, (queries,).
    """

    choices: list[tuple[float, int]]
    gains: Values
    counts: Values
    weights: Values

    @classmethod
    def of(cls, queries: Sequence[JudgedCandidates], fusions: Sequence[Fusion]) -> _PairChoices:
        """Measure all choices, for each query with its own models."""
        choices = [(pair_from, depth) for pair_from in _PAIR_FROM for depth in _PAIR_DEPTHS]
        gains, counts = np.zeros((2, len(queries), len(choices)))
        for row, (query, fusion) in enumerate(zip(queries, fusions, strict=True)):
            recall = ranking_logits(query, _RECALL, fusion)
            everywhere = replace(fusion, pair_from=-np.inf, pair_depth=len(recall))
            with_pairs = ranking_logits(query, _COMPLETE, everywhere)
            known: dict[bytes, float] = {}
            for column, (pair_from, depth) in enumerate(choices):
                is_scored = _is_scored(query, recall, pair_from, depth)
                key = is_scored.tobytes()
                if key not in known:
                    ranked = query.ranked_grades(np.where(is_scored, with_pairs, recall))
                    known[key] = float(ndcg(ranked[None], query.ideal[None], _DEPTH)[0])
                gains[row, column], counts[row, column] = known[key], is_scored.sum()
        return cls(choices, gains - gains[:, :1], counts, np.array([query.weight for query in queries]))

    def applied(self, fusion: Fusion, is_used: NDArray[np.bool_]) -> Fusion:
        """The fusion with the choice that fits the used (queries,) queries best.

        No pairs are scored if the gain of the best choice is within two standard errors. If no query has pair
        scores, the fusion stays as it is.
        """
        if not self.counts.any() or not is_used.any():
            return fusion
        weights = self.weights[is_used] / self.weights[is_used].sum()
        gains = weights @ self.gains[is_used]
        best = int(gains.argmax())
        spread = weights * (self.gains[is_used, best] - gains[best])
        if gains[best] <= _MIN_STANDARD_ERRORS * float((spread**2).sum()) ** 0.5:
            return replace(fusion, pair_from=NEVER)
        is_good = gains >= gains[best] - _CHOICE_TOLERANCE
        cheapest = int(np.where(is_good, weights @ self.counts[is_used], np.inf).argmin())
        pair_from, pair_depth = self.choices[cheapest]
        return replace(fusion, pair_from=pair_from, pair_depth=pair_depth)


def fit(queries: Sequence[JudgedCandidates], start: Fusion) -> Fusion:
    """The models that make the judgements likeliest, pulled towards `start`.

    A model stays as it is if no candidate has its parts, or if all or none of those candidates are relevant.
    """
    fitted: dict[str, Any] = {name: _fit_model(queries, name, getattr(start, name)) for name in PART_SETS}
    return replace(start, **fitted)


def measure(queries: Sequence[JudgedCandidates], fusions: Sequence[Fusion]) -> dict[str, Quality]:
    """The quality of one fusion for each query, by set of parts."""
    ideal = np.array([query.ideal for query in queries])
    measured = {}
    for name in PART_SETS:
        scores, labels = scores_and_labels(queries, name, fusions)
        if not len(scores):
            continue
        pairs = list(zip(queries, fusions, strict=True))
        ranked = np.array([one.ranked_grades(ranking_logits(one, name, fusion)) for one, fusion in pairs])
        losses = [_log_loss(*scores_and_labels([one], name, [fusion])) for one, fusion in pairs]
        error = calibration_error(scores, labels)
        measured[name] = Quality(ndcg(ranked, ideal, _DEPTH), np.array(losses), error)
    return measured


def scores_and_labels(
    queries: Sequence[JudgedCandidates], name: str, fusions: Sequence[Fusion]
) -> tuple[Values, Values]:
    """The scores of all candidates that have these parts, and 1 where they are relevant: (count,) each.

    Args:
        fusions: for each query the models that it is scored by.
    """
    logits = np.concatenate([_logits(query, name, one) for query, one in zip(queries, fusions, strict=True)])
    labels = np.concatenate([query.is_relevant for query in queries])
    is_complete = ~np.isnan(logits)
    return _sigmoid(logits[is_complete]), labels[is_complete]


def ranking_logits(query: JudgedCandidates, name: str, fusion: Fusion) -> Values:
    """The logits by which a match sorts the candidates, with the parts of that set: (count,).

    Candidates that lack a part have the logits of the parts that they have. So do those whose pairs are not
    scored by `pair_from` and `pair_depth`.
    """
    logits = np.full(len(query.grades), -np.inf)
    wanted = PART_SETS[name]
    for other, parts in PART_SETS.items():
        if set(parts) <= set(wanted):
            own = _logits(query, other, fusion)
            logits = np.where(np.isnan(own), logits, own)
    if "pair" in wanted:
        recall = ranking_logits(query, name.removesuffix("_pair"), fusion)
        is_scored = _is_scored(query, recall, fusion.pair_from, fusion.pair_depth)
        logits = np.where(is_scored, logits, recall)
    return logits


def pairs_scored(query: JudgedCandidates, fusion: Fusion) -> NDArray[np.bool_]:
    """Which pairs a match without `min_score` scores at most: (count,)."""
    recall = ranking_logits(query, _RECALL, fusion)
    return _is_scored(query, recall, fusion.pair_from, fusion.pair_depth)


def _is_scored(
    query: JudgedCandidates, recall: Values, pair_from: float, pair_depth: int
) -> NDArray[np.bool_]:
    is_scored = np.zeros(len(recall), dtype=bool)
    is_scored[best_first(recall)[:pair_depth]] = True
    return is_scored & (query.cosine >= pair_from) & ~np.isnan(query.pair)


def standard_error(values: Values) -> float:
    """The standard error of a mean; infinite for a single value."""
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("inf")


def _logits(query: JudgedCandidates, name: str, fusion: Fusion) -> Values:
    """The logits of one model: (count,); NaN where a part is missing."""
    model: ScoreModel = getattr(fusion, name)
    parts = PART_SETS[name]
    logits: Values = model.intercept + query.parts(parts) @ [getattr(model, part) for part in parts]
    return logits


def _fit_model(queries: Sequence[JudgedCandidates], name: str, start: ScoreModel) -> ScoreModel:
    parts = PART_SETS[name]
    if not queries:
        return start
    inputs = np.concatenate([query.parts(parts) for query in queries])
    labels = np.concatenate([query.is_relevant for query in queries])
    weights = np.concatenate([np.full(len(query.grades), query.weight) for query in queries])
    is_complete = ~np.isnan(inputs).any(axis=1)
    inputs, labels, weights = inputs[is_complete], labels[is_complete], weights[is_complete]
    if not len(labels) or not 0.0 < float(labels.mean()) < 1.0:
        return start
    # Standardised, so that one ridge fits all parts.
    means = np.average(inputs, axis=0, weights=weights)
    scales = np.sqrt(np.average((inputs - means) ** 2, axis=0, weights=weights))
    scales = np.where(scales > 0, scales, 1.0)
    design = np.column_stack([np.ones(len(inputs)), (inputs - means) / scales])
    present = np.array([getattr(start, part) for part in parts])
    origin = np.concatenate([[start.intercept + present @ means], present * scales])
    found = _logistic_regression(design, labels, weights, origin)
    slopes = found[1:] / scales
    return ScoreModel(float(found[0] - slopes @ means), **dict(zip(parts, slopes.tolist(), strict=True)))


def _logistic_regression(design: Values, labels: Values, weights: Values, origin: Values) -> Values:
    """The parameters with the least log loss, near `origin`; all but the first are at least 0.

    Newton's method on the parameters that are not held at 0.
    """

    def loss(parameters: Values) -> float:
        logits = design @ parameters
        likelihood = weights @ (np.logaddexp(0.0, logits) - labels * logits)
        return float(likelihood + _RIDGE * weights.mean() / 2 * ((parameters - origin) ** 2).sum())

    ridge = _RIDGE * weights.mean()
    parameters = origin.copy()
    for _ in range(_NEWTON_STEPS):
        likely = _sigmoid(design @ parameters)
        gradient = design.T @ (weights * (likely - labels)) + ridge * (parameters - origin)
        curvature = (design * (weights * likely * (1.0 - likely))[:, None]).T @ design
        curvature += ridge * np.eye(len(parameters))
        is_free = (parameters > 0) | (gradient < 0)
        is_free[0] = True
        step = np.zeros_like(parameters)
        step[is_free] = np.linalg.solve(curvature[np.ix_(is_free, is_free)], gradient[is_free])
        stepped, size = parameters, 1.0
        while size > _TOLERANCE:
            stepped = parameters - size * step
            stepped[1:] = stepped[1:].clip(min=0.0)
            if loss(stepped) <= loss(parameters):
                break
            size /= 2
        moved = float(np.abs(stepped - parameters).max())
        parameters = stepped
        if moved < _TOLERANCE:
            break
    return parameters


def _sigmoid(logits: Values) -> Values:
    likely: Values = 0.5 * (1.0 + np.tanh(logits / 2.0))
    return likely


def _log_loss(likely: Values, labels: Values) -> float:
    """The mean of a query; NaN without candidates."""
    if not len(likely):
        return float("nan")
    bounded = likely.clip(_LEAST_PROBABILITY, 1.0 - _LEAST_PROBABILITY)
    return float(-np.where(labels > 0, np.log(bounded), np.log1p(-bounded)).mean())


def _first_ten(grades: Values) -> Values:
    first = np.zeros(_DEPTH)
    first[: len(grades)] = grades[:_DEPTH]
    return first
