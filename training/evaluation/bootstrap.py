"""Bootstrap intervals: how much a metric would vary with other items of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

REPEATS = 1000
COVERAGE = 0.95
# Resamples are drawn in blocks of this many items, which bounds the memory.
_BLOCK_ITEMS = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A metric with the ends of its interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BootstrapMetrics:
    """Metrics by name: on all items, and on each resample, (repeats,)."""

    values: dict[str, float]
    repeats: dict[str, Values]

    def estimates(self) -> dict[str, Estimate]:
        """Each metric with its percentile interval."""
        return {name: _estimate(value, self.repeats[name]) for name, value in self.values.items()}

    def minus(self, other: BootstrapMetrics) -> dict[str, Estimate]:
        """The differences to metrics of the same resamples, item by item."""
        return {
            name: _estimate(value - other.values[name], self.repeats[name] - other.repeats[name])
            for name, value in self.values.items()
        }


def resample(
    measure: Callable[[Indices], dict[str, Values]], count: int, *, repeats: int = REPEATS, seed: int = 0
) -> BootstrapMetrics:
    """Measure all items, and `repeats` resamples of the same size drawn with replacement.

    Equal counts, repeats and seeds give equal resamples, so metrics of several models can be subtracted.

    Args:
        measure: from indices (repeats, count) of items to metrics by name, (repeats,) each.
        count: number of items.
        repeats: number of resamples.
        seed: of the resamples.
    """
    values = {name: float(row[0]) for name, row in measure(np.arange(count)[np.newaxis]).items()}
    blocks = [measure(indices) for indices in _draws(count, repeats, seed)]
    return BootstrapMetrics(
        values, {name: np.concatenate([block[name] for block in blocks]) for name in values}
    )


def resample_means(columns: dict[str, Values], *, repeats: int = REPEATS, seed: int = 0) -> BootstrapMetrics:
    """As `resample`, with the mean of each column (count,) as its metric."""

    def means(indices: Indices) -> dict[str, Values]:
        return {name: column[indices].mean(axis=1) for name, column in columns.items()}

    count = len(next(iter(columns.values())))
    return resample(means, count, repeats=repeats, seed=seed)


def _draws(count: int, repeats: int, seed: int) -> Iterator[Indices]:
    random = np.random.default_rng(seed)
    block = max(1, _BLOCK_ITEMS // count)
    for start in range(0, repeats, block):
        yield random.integers(0, count, size=(min(block, repeats - start), count))


def _estimate(value: float, repeats: Values) -> Estimate:
    """Resamples in which the metric is not defined, such as those without positives, are ignored."""
    defined = repeats[np.isfinite(repeats)]
    if not np.isfinite(value) or not defined.size:
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(value, float(low), float(high))
