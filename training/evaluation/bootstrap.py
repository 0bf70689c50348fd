"""Bootstrap intervals: how far a figure would move on other items of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

REPEATS = 1000
COVERAGE = 0.95
# Resamples are drawn in blocks of so many items, which bounds the memory that they take.
_BLOCK_ITEMS = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """Figures by name: on all items, and on each resample, (repeats,)."""

    values: dict[str, float]
    repeats: dict[str, Values]

    def estimates(self) -> dict[str, Estimate]:
        """Each figure with its percentile interval."""
        return {name: _estimate(value, self.repeats[name]) for name, value in self.values.items()}

    def minus(self, other: Resampled) -> dict[str, Estimate]:
        """The differences to figures that were resampled in the same way, item by item."""
        return {
            name: _estimate(value - other.values[name], self.repeats[name] - other.repeats[name])
            for name, value in self.values.items()
        }


def resample(
    measure: Callable[[Indices], dict[str, Values]], count: int, *, repeats: int = REPEATS, seed: int = 0
) -> Resampled:
    """Measures all items, and `repeats` times as many items drawn with replacement.

    Equal counts, repeats and seeds give equal draws, so that figures of several models can be subtracted.

    Args:
        measure: from indices (repeats, count) of items to figures by name, (repeats,) each.
        count: of the items.
        repeats: how many resamples.
        seed: decides the draws.
    """
    values = {name: float(row[0]) for name, row in measure(np.arange(count)[np.newaxis]).items()}
    blocks = [measure(indices) for indices in _draws(count, repeats, seed)]
    return Resampled(values, {name: np.concatenate([block[name] for block in blocks]) for name in values})


def resample_means(columns: dict[str, Values], *, repeats: int = REPEATS, seed: int = 0) -> Resampled:
    """The means of columns (count,) of one value an item each."""

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
    """A resample in which the figure is not defined, such as one without positives, does not count."""
    defined = repeats[np.isfinite(repeats)]
    if not np.isfinite(value) or not defined.size:
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(value, float(low), float(high))
