from __future__ import annotations

import math

import numpy as np
import pytest

from training.evaluation.bootstrap import BootstrapMetrics, resample, resample_means


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=2000)
    found = resample_means({"mean": values}, repeats=2000).estimates()["mean"]
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(2000), rel=0.1)
    assert found.low < found.value < found.high


def test_the_seed_decides_and_blocks_do_not() -> None:
    values = np.arange(900_000, dtype=np.float64)
    first = resample_means({"mean": values}, repeats=5, seed=1).repeats["mean"]
    assert first.shape == (5,)
    assert (first == resample_means({"mean": values}, repeats=5, seed=1).repeats["mean"]).all()
    assert (first != resample_means({"mean": values}, repeats=5, seed=2).repeats["mean"]).all()


def test_differences_are_taken_item_by_item() -> None:
    values = np.random.default_rng(1).random(100)
    better = resample_means({"mean": values + 0.1})
    difference = better.minus(resample_means({"mean": values}))["mean"]
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_resamples_without_a_figure_do_not_count() -> None:
    some = BootstrapMetrics({"figure": 1.0}, {"figure": np.array([np.nan, 1.0, 3.0])}).estimates()["figure"]
    assert 1.0 < some.low < some.high < 3.0
    none = BootstrapMetrics({"figure": 1.0}, {"figure": np.array([np.nan])}).estimates()["figure"]
    assert math.isnan(none.low)


def test_a_measure_gets_all_items_once_and_then_the_draws() -> None:
    shapes: list[tuple[int, ...]] = []

    def measure(indices: np.ndarray) -> dict[str, np.ndarray]:
        shapes.append(indices.shape)
        return {"first": indices[:, 0].astype(np.float64)}

    found = resample(measure, 7, repeats=4)
    assert shapes == [(1, 7), (4, 7)]
    assert found.values == {"first": 0.0}
