from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from training.evaluation.pairs import (
    PairSample,
    best_threshold,
    bins_of,
    correct_by_folds,
    correct_by_threshold,
    precision_thresholds,
    reliability_table,
    threshold_for_precision,
)

ALL = np.arange(4)[np.newaxis]


def _sample(scores: list[float], labels: list[float]) -> PairSample:
    is_positive = np.array(labels) >= 0.5
    is_correct = correct_by_threshold(np.array(scores), is_positive, 0.5)
    return PairSample(np.array(scores), np.array(labels), is_positive, is_correct)


def test_known_answers() -> None:
    # Ranks 2 1 3 4 against 1 2 3 4: 1 - 6 * (1 + 1) / (4 * 15) = 0.8. Every pair is alone in its bin.
    figures = _sample([0.2, 0.1, 0.6, 0.9], [0.0, 0.2, 0.8, 1.0]).measure(ALL)
    assert figures["spearman"] == pytest.approx([0.8])
    assert figures["auc"] == pytest.approx([1.0])
    assert figures["accuracy"] == pytest.approx([1.0])
    assert figures["mse"] == pytest.approx([(0.04 + 0.01 + 0.04 + 0.01) / 4])
    assert figures["ece"] == pytest.approx([(0.2 + 0.1 + 0.2 + 0.1) / 4])


def test_calibration_error_compares_means_within_a_bin() -> None:
    # One bin: mean score 0.55, mean label 0.5, however wrong each pair is.
    figures = _sample([0.55, 0.55, 0.54, 0.56], [0.0, 1.0, 0.0, 1.0]).measure(ALL)
    assert figures["ece"] == pytest.approx([0.05])


def test_one_positive_of_two_above_the_negatives() -> None:
    figures = _sample([0.9, 0.1, 0.3, 0.2], [1.0, 1.0, 0.0, 0.0]).measure(ALL)
    assert figures["auc"] == pytest.approx([0.5])
    assert figures["accuracy"] == pytest.approx([0.75])


def test_every_row_of_indices_is_measured_alone() -> None:
    random = np.random.default_rng(0)
    scores = random.random(50).round(1)
    labels = (scores + random.normal(0, 0.3, 50)).clip(0, 1)
    sample = _sample(scores.tolist(), labels.tolist())
    indices = random.integers(0, 50, (3, 50))
    figures = sample.measure(indices)
    for row, chosen in enumerate(indices):
        own_scores, own_labels = scores[chosen], labels[chosen]
        assert figures["spearman"][row] == pytest.approx(spearmanr(own_scores, own_labels).statistic)
        assert figures["auc"][row] == pytest.approx(roc_auc_score(own_labels >= 0.5, own_scores))
        assert figures["ece"][row] == pytest.approx(sample.measure(chosen[np.newaxis])["ece"][0])


def test_what_is_not_defined_is_nan() -> None:
    constant = _sample([0.5] * 4, [0.1, 0.2, 0.3, 0.4]).bootstrap(repeats=5).estimates()
    assert math.isnan(constant["spearman"].value)
    assert math.isnan(constant["auc"].low)
    assert constant["mse"].value == pytest.approx((0.16 + 0.09 + 0.04 + 0.01) / 4)
    assert math.isnan(_sample([0.5], [1.0]).measure(np.zeros((1, 1), dtype=np.int64))["pearson"][0])


@pytest.mark.parametrize(
    ("scores", "labels", "threshold"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.5),
        ([0.1, 0.2, 0.4, 0.9], [0, 1, 0, 1], 0.65),
        ([0.1, 0.2], [1, 1], 0.1),
        # A tie cannot be split: calling both 0.8 the same is no better than calling only 0.9 so.
        ([0.8, 0.8, 0.9], [0, 1, 1], 0.85),
    ],
)
def test_best_threshold(scores: list[float], labels: list[int], threshold: float) -> None:
    assert best_threshold(np.array(scores), np.array(labels) == 1) == pytest.approx(threshold)


def test_without_positives_the_best_threshold_is_above_all_scores() -> None:
    assert best_threshold(np.array([0.2, 1.0]), np.array([False, False])) > 1.0


def test_each_fold_is_judged_by_the_threshold_of_the_others() -> None:
    scores = np.linspace(0, 1, 100)
    is_correct, threshold = correct_by_folds(scores, scores > 0.6)
    assert is_correct.mean() >= 0.95
    assert threshold == pytest.approx(0.6, abs=0.05)
    assert (correct_by_folds(scores, scores > 0.6)[0] == is_correct).all()
    assert correct_by_folds(np.array([0.5]), np.array([True]))[0].tolist() == [True]


def test_a_pair_does_not_choose_its_own_threshold() -> None:
    # The other pairs are all negative, so their threshold is above all scores.
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.35])
    is_correct, _ = correct_by_folds(scores, np.array([False, False, False, False, True]))
    assert not is_correct[-1]


def test_reliability_has_the_means_of_each_bin_with_pairs() -> None:
    table = reliability_table(np.array([0.05, 0.91, 0.99, 1.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert [(one.lowest, one.pairs) for one in table] == [(0.0, 1), (0.9, 3)]
    assert table[1].mean_score == pytest.approx(2.9 / 3)
    assert table[1].mean_label == pytest.approx(2 / 3)


def test_the_lowest_threshold_that_reaches_a_precision() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    is_positive = np.array([True, True, False, True, True])
    # Everything above 0.5 is right in 4 of 5, above 0.6 in 3 of 4, above 0.8 always.
    found = threshold_for_precision(scores, is_positive, 0.9)
    assert found is not None
    assert (found.precision, found.score, found.recall) == (1.0, 0.8, 0.5)
    loose = threshold_for_precision(scores, is_positive, 0.8)
    assert loose is not None
    assert (loose.score, loose.recall) == (0.5, 1.0)
    assert threshold_for_precision(np.array([0.9, 0.1]), np.array([False, True]), 0.9) is None
    assert threshold_for_precision(scores, np.zeros(5, dtype=np.bool_), 0.5) is None


def test_bins_have_both_ends() -> None:
    assert bins_of(np.array([0.0, 0.05, 0.1, 0.99, 1.0])).tolist() == [0, 0, 1, 9, 9]


def test_thresholds_for_precisions() -> None:
    scores = np.linspace(0.01, 1, 100)
    is_positive = scores > 0.5
    is_positive[52] = False
    found = precision_thresholds(scores, is_positive)
    assert list(found) == [0.9, 0.95]
    low, high = found[0.9], found[0.95]
    assert low is not None
    assert high is not None
    # Of the 55 scores from 0.46 on, 49 are positive (0.89); of the 54 from 0.47 on, 49 (0.907).
    assert low.score == pytest.approx(0.47)
    assert low.precision == pytest.approx(49 / 54)
    assert high.precision >= 0.95
