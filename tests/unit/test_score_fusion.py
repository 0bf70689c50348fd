"""How parts become a score."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.errors import InvalidInput
from textmatch.score_fusion import (
    ScoreCalibration,
    ScoreComponents,
    Weights,
    calibrated,
    combined_score,
    from_mapping,
    lexical_evidence,
    recall_score,
    to_mapping,
)

SHARES = st.floats(0, 1)
WEIGHTS = st.builds(
    Weights,
    SHARES,
    SHARES,
    st.none() | st.builds(ScoreCalibration, st.floats(0, 50), st.floats(-50, 50)),
)


@given(st.floats(-1, 1), st.none() | st.floats(0, 1e4), SHARES, WEIGHTS)
def test_every_score_is_from_0_to_1(
    cosine: float, bm25: float | None, cross_encoder: float, weights: Weights
):
    recall = recall_score(ScoreComponents(cosine, bm25), weights)
    combined = combined_score(recall, cross_encoder, weights)
    for score in (recall, combined, calibrated(recall, weights), calibrated(combined, weights)):
        assert -1e-12 <= score <= 1 + 1e-12


@given(st.floats(-1, 1), st.floats(0, 100), st.floats(0, 100), WEIGHTS)
def test_more_shared_words_never_lower_a_score(cosine: float, less: float, more: float, weights: Weights):
    less, more = sorted((less, more))
    assert recall_score(ScoreComponents(cosine, more), weights) >= recall_score(
        ScoreComponents(cosine, less), weights
    )
    assert recall_score(ScoreComponents(cosine, 0.0), weights) == recall_score(
        ScoreComponents(cosine), weights
    )


@given(WEIGHTS)
def test_weights_are_kept_whole(weights: Weights):
    assert from_mapping(to_mapping(weights)) == weights


def test_the_formula_by_hand():
    weights = Weights(lexical=0.5, rerank=0.25)
    assert lexical_evidence(12.0) == 0.125
    recall = recall_score(ScoreComponents(0.6, 12.0), weights)
    assert recall == pytest.approx(1 - 0.4 * (1 - 0.5 * 0.125))
    assert combined_score(recall, 0.8, weights) == pytest.approx(0.25 * 0.8 + 0.75 * recall)
    calibration = Weights(calibration=ScoreCalibration(4.0, -2.0))
    assert calibrated(0.9, calibration) == pytest.approx(1 / (1 + math.exp(-(4.0 * 0.9 - 2.0))))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rerank": 0.5}, "weights.lexical: is None"),
        ({"lexical": 1.5, "rerank": 0.5}, "weights.lexical: is 1.5; it must be 0 to 1"),
        ({"lexical": True, "rerank": 0.5}, "weights.lexical: is True"),
        ({"lexical": 0.5, "rerank": 0.5, "calibration": {"slope": -1, "intercept": 0}}, "calibration.slope"),
        ({"lexical": 0.5, "rerank": 0.5, "calibration": 3}, "weights.calibration: is 3"),
    ],
)
def test_weights_that_make_no_sense_are_named(values: dict[str, object], message: str):
    with pytest.raises(InvalidInput, match=message):
        from_mapping(values)
