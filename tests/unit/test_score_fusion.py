"""How parts become a score."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.errors import InvalidInput
from textmatch.score_fusion import (
    DEFAULTS,
    FUSION_NOTE,
    GENERIC,
    PART_SETS,
    Fusion,
    ScoreComponents,
    ScoreModel,
    default_fusion,
    from_mapping,
    fusion_of,
    pair_logit,
    probability,
    to_mapping,
)

WEIGHTS = st.floats(0, 50)
INTERCEPTS = st.floats(-50, 50)
FUSIONS = st.builds(
    Fusion,
    st.builds(ScoreModel, INTERCEPTS, cosine=WEIGHTS),
    st.builds(ScoreModel, INTERCEPTS, lexical=WEIGHTS),
    st.builds(ScoreModel, INTERCEPTS, cosine=WEIGHTS, lexical=WEIGHTS),
    st.builds(ScoreModel, INTERCEPTS, cosine=WEIGHTS, pair=WEIGHTS),
    st.builds(ScoreModel, INTERCEPTS, cosine=WEIGHTS, lexical=WEIGHTS, pair=WEIGHTS),
    st.floats(-1, 2),
    st.integers(1, 1_000),
)
COSINES, SHARES = st.floats(-1, 1), st.floats(0, 1)
PARTS = st.one_of(
    st.builds(ScoreComponents, COSINES, st.none() | SHARES, st.none() | SHARES),
    st.builds(ScoreComponents, st.none(), SHARES),
)


@given(PARTS, FUSIONS)
def test_every_score_is_from_0_to_1(parts: ScoreComponents, fusion: Fusion):
    assert 0 <= probability(fusion.logit(parts)) <= 1


@given(COSINES, SHARES, SHARES, SHARES, FUSIONS)
def test_more_of_a_part_never_lowers_a_score(
    cosine: float, pair: float, one: float, other: float, fusion: Fusion
):
    less, more = sorted((one, other))
    for lower, higher in (
        (ScoreComponents(None, less), ScoreComponents(None, more)),
        (ScoreComponents(cosine, less), ScoreComponents(cosine, more)),
        (ScoreComponents(less, one, pair), ScoreComponents(more, one, pair)),
        (ScoreComponents(cosine, None, less), ScoreComponents(cosine, None, more)),
        (ScoreComponents(cosine, one, less), ScoreComponents(cosine, one, more)),
    ):
        assert fusion.logit(lower) <= fusion.logit(higher)


@given(FUSIONS)
def test_models_are_kept_whole(fusion: Fusion):
    assert from_mapping(to_mapping(fusion)) == fusion


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (ScoreComponents(0.5), -4 + 6 * 0.5),
        (ScoreComponents(lexical=0.5), -2 + 8 * 0.5),
        (ScoreComponents(0.5, 0.25), -5 + 7 * 0.5 + 9 * 0.25),
        (ScoreComponents(0.5, pair=0.8), -3 + 5 * 0.5 + 0.5 * math.log(4)),
        (ScoreComponents(0.5, 0.25, 0.8), -6 + 4 * 0.5 + 3 * 0.25 + 2 * math.log(4)),
    ],
)
def test_each_set_of_parts_has_its_own_model(parts: ScoreComponents, expected: float):
    fusion = Fusion(
        ScoreModel(-4, cosine=6),
        ScoreModel(-2, lexical=8),
        ScoreModel(-5, cosine=7, lexical=9),
        ScoreModel(-3, cosine=5, pair=0.5),
        ScoreModel(-6, cosine=4, lexical=3, pair=2),
    )
    assert fusion.logit(parts) == pytest.approx(expected, abs=1e-5)
    assert probability(fusion.logit(parts)) == pytest.approx(1 / (1 + math.exp(-expected)), abs=1e-5)
    assert fusion.model(parts.without_pair()).pair == 0


def test_scores_do_not_collapse_in_float32():
    logits = np.arange(-60, 14, 0.25)
    scores = np.array([probability(logit) for logit in logits], dtype=np.float32)
    assert (np.diff(scores) > 0).all()
    assert probability(-1e4) == pytest.approx(0)
    assert probability(1e4) == 1.0


def test_a_pair_score_at_its_limits_has_a_finite_logit():
    assert [pair_logit(one) for one in (0.0, 0.5, 1.0)] == pytest.approx([-8, 0, 8])


@given(PARTS, SHARES, FUSIONS)
def test_no_pair_score_leaves_the_bounds(parts: ScoreComponents, pair: float, fusion: Fusion):
    lowest, highest = fusion.logits_with_pair(parts)
    assert lowest <= fusion.logit(replace(parts, pair=pair)) <= highest


def test_the_last_bits_of_a_cosine_make_no_difference():
    fusion = default_fusion("any-0")
    assert fusion.logit(ScoreComponents(0.99999994)) == fusion.logit(ScoreComponents(1.0))


def test_models_are_found_by_the_name_of_the_bi_encoder():
    for name, entry in DEFAULTS.items():
        assert default_fusion(f"{name}-0123456789ab") == entry.fusion
        assert entry.fitted_on
        assert set(entry.calibration_error) == set(PART_SETS)
        assert max(entry.calibration_error.values()) <= 0.05
    assert default_fusion("unheard-of-0123456789ab") == DEFAULTS[GENERIC].fusion


def test_tuned_models_replace_the_default_ones_unless_they_make_no_sense(caplog: pytest.LogCaptureFixture):
    tuned = Fusion(*(ScoreModel(-1.0, **dict.fromkeys(parts, 2.0)) for parts in PART_SETS.values()))
    assert fusion_of({FUSION_NOTE: to_mapping(tuned)}, "any-0") == tuned
    assert fusion_of({FUSION_NOTE: None}, "any-0") == default_fusion("any-0")
    assert fusion_of({FUSION_NOTE: {"cosine": 7}}, "any-0") == default_fusion("any-0")
    assert "invalid" in caplog.text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lexical": None}, "score_fusion.lexical: is None; it must be an object"),
        ({"cosine": {"intercept": 1}}, "score_fusion.cosine.cosine: is None; it must be 0 or more"),
        ({"cosine": {"intercept": 1, "cosine": -1}}, "cosine.cosine: is -1; it must be 0 or more"),
        ({"cosine": {"intercept": True, "cosine": 1}}, "cosine.intercept: is True; it must be a number"),
        ({"cosine": {"intercept": math.nan, "cosine": 1}}, "cosine.intercept: is nan"),
        ({"pair_from": None}, "score_fusion.pair_from: is None; it must be a number"),
        ({"pair_depth": 0}, "score_fusion.pair_depth: is 0; it must be 1 or more"),
        ({"pair_depth": 2.5}, "score_fusion.pair_depth: is 2.5; it must be a whole number up to 1,000"),
    ],
)
def test_models_that_make_no_sense_are_named(changed: dict[str, object], message: str):
    with pytest.raises(InvalidInput, match=message):
        from_mapping(to_mapping(default_fusion("any-0")) | changed)
