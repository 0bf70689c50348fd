from __future__ import annotations

import math

import numpy as np
import pytest

from training.evaluation.comparison import agreement
from training.pairs import ScoredPair

PAIRS = [ScoredPair("a", "b", score) for score in (0.0, 0.2, 0.6, 1.0)]


def test_perfect_scores() -> None:
    measured = agreement(np.array([0.0, 0.2, 0.6, 1.0], dtype=np.float32), PAIRS)
    assert measured.spearman == pytest.approx(1.0)
    assert measured.pearson == pytest.approx(1.0)
    assert measured.mse == pytest.approx(0.0, abs=1e-12)
    assert measured.pair_count == 4


def test_spearman_sees_order_only_and_pearson_and_error_see_distance() -> None:
    measured = agreement(np.array([0.0, 0.01, 0.02, 1.0], dtype=np.float32), PAIRS)
    assert measured.spearman == pytest.approx(1.0)
    assert measured.pearson == pytest.approx(0.8358, abs=1e-4)
    assert measured.mse == pytest.approx((0.19**2 + 0.58**2) / 4, abs=1e-6)


def test_one_swap_of_neighbours() -> None:
    # Spearman's formula: 1 - 6 * (1 + 1) / (4 * 15)
    assert agreement(np.array([0.2, 0.0, 0.6, 1.0]), PAIRS).spearman == pytest.approx(0.8)


def test_constant_scores_have_no_correlation() -> None:
    measured = agreement(np.full(4, 0.5, dtype=np.float32), PAIRS)
    assert math.isnan(measured.spearman)
    assert math.isnan(measured.pearson)
    assert measured.mse == pytest.approx((0.25 + 0.09 + 0.01 + 0.25) / 4)
