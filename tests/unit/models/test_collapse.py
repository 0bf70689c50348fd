from __future__ import annotations

import numpy as np
import pytest

from textmatch.models.collapse import PROBES, score_spread


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        (np.full((8, 8), 0.9998), "all 64 scores are 0.9998 to 0.9998"),
        (np.linspace(0.5, 0.5004, 30), "all 30 scores are 0.5000 to 0.5004"),
        (np.array([0.3, np.nan, np.inf]), "2 of 3 scores are not finite numbers"),
        (np.tile([0.0, 1.0], 100), "200 scores have only 2 different values"),
    ],
)
def test_useless_scores_are_named(scores: np.typing.NDArray[np.float64], problem: str) -> None:
    assert score_spread(scores).problem == problem


@pytest.mark.parametrize(
    "scores", [np.linspace(0.97, 1.0, 64), np.array([0.0, 1.0]), np.array([0.5]), np.array([])]
)
def test_scores_that_differ_are_no_problem(scores: np.typing.NDArray[np.float64]) -> None:
    assert score_spread(scores).problem == ""


def test_spread_and_distinct_share() -> None:
    measured = score_spread(np.array([[0.25, 0.75], [0.25, 0.5]], dtype=np.float32))
    assert (measured.spread, measured.distinct_share) == (0.5, 0.75)


def test_probes_are_different_texts_in_two_languages() -> None:
    assert set(PROBES) == {"en", "zh"}
    assert all(len(set(texts)) == len(texts) > 2 for texts in PROBES.values())
