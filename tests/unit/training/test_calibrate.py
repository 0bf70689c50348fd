from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from textmatch.errors import InvalidInput
from textmatch.models.calibration import MAX_KNOTS, Calibration, Isotonic, Logistic, logit
from training.calibrate import CalibrationMethod, fit_calibration
from training.evaluation.pairs import PairSample

METHODS = list(CalibrationMethod)


def _overconfident(count: int = 4000, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and 0/1 labels that come true as often as sigmoid(logit(score) / 3 - 0.5) says."""
    random = np.random.default_rng(seed)
    scores = random.random(count)
    chances = 1 / (1 + np.exp(0.5 - logit(scores) / 3))
    return scores, (random.random(count) < chances).astype(np.float64)


def _calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    is_positive = labels >= 0.5
    sample = PairSample(scores, labels, is_positive, is_positive)
    return float(sample.measure(np.arange(len(scores))[np.newaxis])["ece"][0])


def test_logistic_finds_the_slope_and_the_intercept() -> None:
    method = fit_calibration(CalibrationMethod.LOGISTIC, *_overconfident(20_000)).method
    assert isinstance(method, Logistic)
    assert (method.slope, method.intercept) == pytest.approx((1 / 3, -0.5), abs=0.04)


def test_isotonic_draws_steps_together_to_their_middles() -> None:
    # The steps of isotonic regression: 0.1 and 0.2 have 0, 0.4 to 0.6 have 1/2, 0.8 and 0.9 have 1.
    scores = np.tile([0.1, 0.2, 0.4, 0.6, 0.8, 0.9], 3)
    labels = np.tile([0.0, 0.0, 1.0, 0.0, 1.0, 1.0], 3)
    method = fit_calibration(CalibrationMethod.ISOTONIC, scores, labels).method
    assert isinstance(method, Isotonic)
    assert method.scores == pytest.approx((0.0, 0.15, 0.5, 0.85, 1.0))
    assert method.values == pytest.approx((0.0, 0.0, 0.5, 1.0, 1.0), abs=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_it_repairs_overconfident_scores_that_it_was_not_fitted_on(name: CalibrationMethod) -> None:
    calibration = Calibration(fit_calibration(name, *_overconfident()).method, "x")
    scores, labels = _overconfident(seed=2)
    mapped = calibration.apply(scores.astype(np.float32)).astype(np.float64)
    assert _calibration_error(scores, labels) > 0.1
    assert _calibration_error(mapped, labels) < 0.03


@pytest.mark.parametrize("name", METHODS)
def test_scores_of_held_out_folds_are_calibrated_and_their_own_label_does_not_count(
    name: CalibrationMethod,
) -> None:
    scores, labels = _overconfident()
    fitted = fit_calibration(name, scores, labels)
    assert _calibration_error(fitted.held_out_scores, labels) < 0.03
    flipped = labels.copy()
    flipped[0] = 1 - flipped[0]
    assert fit_calibration(name, scores, flipped).held_out_scores[0] == fitted.held_out_scores[0]


@pytest.mark.parametrize("name", METHODS)
def test_graded_labels_and_ranking(name: CalibrationMethod) -> None:
    random = np.random.default_rng(0)
    scores = random.random(500)
    labels = (scores**2 + random.normal(0, 0.05, 500)).clip(0, 1)
    mapped = fit_calibration(name, scores, labels).method(np.sort(scores))
    assert (np.diff(mapped) > 0).all()
    assert mapped == pytest.approx(np.sort(scores) ** 2, abs=0.1)


def test_knots_are_bounded() -> None:
    scores = np.linspace(0, 1, 3 * MAX_KNOTS)
    method = fit_calibration(CalibrationMethod.ISOTONIC, scores, scores**2).method
    assert isinstance(method, Isotonic)
    assert len(method.scores) <= MAX_KNOTS
    assert method(np.array([0.5])) == pytest.approx([0.25], abs=1e-3)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("scores", "labels", "complaint"),
    [
        ([0.1] * 9, [0.0] * 9, "has 9 pairs; a calibration needs 10"),
        (np.linspace(0, 1, 50), np.linspace(1, 0, 50), "do not increase"),
        (np.linspace(0, 1, 50), np.ones(50), "do not increase"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    name: CalibrationMethod, scores: Any, labels: Any, complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        fit_calibration(name, np.asarray(scores), np.asarray(labels))
