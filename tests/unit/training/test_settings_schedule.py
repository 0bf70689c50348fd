from __future__ import annotations

import pytest

from textmatch.errors import InvalidInput
from training.settings import parse_schedule


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.0), (500, 0.5), (1000, 1.0), (1500, 0.55), (2000, 0.1), (9000, 0.1)]
)
def test_straight_lines_between_points(step: int, factor: float):
    assert parse_schedule("1000:1,2000:0.1")(step) == pytest.approx(factor)


def test_a_point_at_step_zero_is_where_it_starts():
    assert parse_schedule("0:1,10:0")(0) == 1.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1000", '"1000" is not STEP:FACTOR'),
        ("1000:a", '"1000:a" is not STEP:FACTOR'),
        ("10:1,10:2", "must increase"),
        ("10:-1", "must be 0 or more"),
        ("10:nan", "must be 0 or more"),
    ],
)
def test_wrong_points_are_reported(text: str, problem: str):
    with pytest.raises(InvalidInput, match=problem):
        parse_schedule(text)
