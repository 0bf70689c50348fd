"""Fits the map from a model's scores to calibrated ones, and says what that is good for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from textmatch.errors import InvalidInput
from textmatch.models.calibration import MAX_KNOTS, Isotonic, Logistic, Method, logit
from training.evaluation.bootstrap import Values
from training.evaluation.pair_metrics import Flags, Threshold, threshold_for_precision

PRECISIONS = (0.9, 0.95)
FOLDS = 5
# Where the fitted steps are level, this share of the score itself keeps the order of scores.
_LEAN = 1e-3


class MethodName(StrEnum):
    """The kinds of maps."""

    ISOTONIC = Isotonic.name
    LOGISTIC = Logistic.name


@dataclass(frozen=True)
class Fitted:
    """A map, and the scores (count,) of each pair by the map fitted without the fold that the pair is in."""

    method: Method
    held_out_scores: Values


def fit(name: MethodName, scores: Values, labels: Values, seed: int = 0) -> Fitted:
    """Fits a map on scores and labels in 0..1, (count,) each.

    Raises:
        InvalidInput: there are fewer pairs than folds, or labels do not rise with scores.
    """
    if len(scores) < 2 * FOLDS:
        raise InvalidInput.of_field("dev", f"has {len(scores)} pairs; a calibration needs {2 * FOLDS}")
    fit_method = _FITS[name]
    folds = np.random.default_rng(seed).permutation(len(scores)) % FOLDS
    held_out = np.empty_like(scores)
    for fold in range(FOLDS):
        is_own = folds == fold
        held_out[is_own] = fit_method(scores[~is_own], labels[~is_own])(scores[is_own])
    return Fitted(fit_method(scores, labels), held_out)


def precision_thresholds(scores: Values, is_positive: Flags) -> dict[float, Threshold | None]:
    """For each of PRECISIONS the lowest threshold that reaches it on these pairs, if one does."""
    return {precision: threshold_for_precision(scores, is_positive, precision) for precision in PRECISIONS}


def _fit_isotonic(scores: Values, labels: Values) -> Isotonic:
    """Isotonic regression whose steps are drawn together to their middles, with straight lines between.

    Scores below the first middle and above the last keep their steps but for the lean.
    """
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(scores, labels)
    steps = fitted.predict(scores)
    values, step_of = np.unique(steps, return_inverse=True)
    if len(values) < 2:
        raise _flat()
    middles = np.bincount(step_of, weights=scores) / np.bincount(step_of)
    if len(values) > MAX_KNOTS - 2:
        kept = np.linspace(0, len(values) - 1, MAX_KNOTS - 2).astype(np.int64)
        middles, values = middles[kept], values[kept]
    knots = np.concatenate(([0.0], middles, [1.0]))
    leaning = (1 - _LEAN) * np.concatenate((values[:1], values, values[-1:])) + _LEAN * knots
    # Where the middle of a step is 0 or 1 itself, it is the end.
    is_new = np.concatenate(([True], np.diff(knots) > 0))
    return Isotonic(tuple(knots[is_new].tolist()), tuple(leaning[is_new].tolist()))


def _fit_logistic(scores: Values, labels: Values) -> Logistic:
    """Logistic regression on the logits of the scores; a pair labelled 0.7 counts as 70 % the same."""
    if not 0.0 < labels.mean() < 1.0:
        raise _flat()
    logits = logit(scores)
    model = LogisticRegression(C=np.inf).fit(
        np.concatenate((logits, logits))[:, np.newaxis],
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate((labels, 1 - labels)),
    )
    slope = float(model.coef_[0, 0])
    if slope <= 0:
        raise _flat()
    return Logistic(slope, float(model.intercept_[0]))


def _flat() -> InvalidInput:
    return InvalidInput.of_field(
        "dev", "its labels do not rise with the model's scores: nothing to calibrate"
    )


_FITS: dict[MethodName, Callable[[Values, Values], Method]] = {
    MethodName.ISOTONIC: _fit_isotonic,
    MethodName.LOGISTIC: _fit_logistic,
}
