"""A learning rate that follows straight lines between points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from textmatch.errors import InvalidInput


@dataclass(frozen=True)
class LearningRateSchedule:
    """By which factor the learning rate is multiplied at a step; behind the last point it stays."""

    steps: Sequence[int]
    factors: Sequence[float]

    def __call__(self, step: int) -> float:
        return float(np.interp(step, self.steps, self.factors))


def parse_schedule(text: str) -> LearningRateSchedule:
    """`1000:1,2000:0.1`: from 0 up to 1 at step 1000, down to 0.1 at step 2000, and 0.1 from there.

    Raises:
        InvalidInput: a point is no STEP:FACTOR, a factor is negative, or the steps do not rise.
    """
    points = [_parse_point(point) for point in text.split(",")]
    if points[0][0] > 0:
        points.insert(0, (0, 0.0))
    steps, factors = zip(*points, strict=True)
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise InvalidInput.of_field("lr-schedule", f'the steps of "{text}" do not rise')
    return LearningRateSchedule(steps, factors)


def _parse_point(text: str) -> tuple[int, float]:
    step, _, factor = text.partition(":")
    try:
        point = int(step), float(factor)
    except ValueError:
        raise InvalidInput.of_field("lr-schedule", f'"{text}" is not STEP:FACTOR, such as 1000:0.5') from None
    if point[0] < 0 or not 0 <= point[1] < float("inf"):
        raise InvalidInput.of_field("lr-schedule", f'"{text}" must have a step and a factor from 0 on')
    return point
