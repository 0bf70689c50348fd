from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textmatch.models.calibration import FILE_NAME, MAX_KNOTS, Calibration, Isotonic, Logistic, Method
from textmatch.models.model_resolver import UnusableModel

ISOTONIC = Isotonic((0.0, 0.5, 1.0), (0.1, 0.2, 0.8))
SCORES = np.array([0.0, 1e-9, 0.25, 0.5, 0.75, 1.0], dtype=np.float32)
VALID: dict[str, Any] = {"version": 1, "method": "logistic", "slope": 1.0, "intercept": 0.0, "fitted_on": "x"}
VALID_ISOTONIC: dict[str, Any] = {**VALID, "method": "isotonic", "scores": [0, 0.5, 1], "values": [0, 0.1, 1]}


def test_isotonic_draws_straight_lines_between_knots():
    mapped = Calibration(ISOTONIC, "x").apply(SCORES)
    assert mapped == pytest.approx([0.1, 0.1, 0.15, 0.2, 0.5, 0.8])
    assert mapped.dtype == np.float32


def test_logistic_moves_the_logit():
    # logit(0.75) = ln 3, and sigmoid(2 ln 3 - ln 3) = 0.75; logit(0.25) = -ln 3 gives sigmoid(-3 ln 3) = 1/28
    mapped = Calibration(Logistic(2.0, -np.log(3)), "x").apply(SCORES)
    assert mapped[[2, 4]] == pytest.approx([1 / 28, 0.75])
    assert mapped[3] == pytest.approx(0.25)


def test_logistic_of_slope_1_changes_nothing():
    assert Calibration(Logistic(1.0, 0.0), "x").apply(SCORES) == pytest.approx(SCORES, abs=2e-7)


@pytest.mark.parametrize("method", [ISOTONIC, Logistic(0.5, -3.0), Logistic(40.0, 10.0)])
def test_the_order_is_kept(method: Method):
    scores = np.linspace(0, 1, 501, dtype=np.float32)
    mapped = Calibration(method, "x").apply(scores)
    assert (np.diff(mapped) >= 0).all()
    assert mapped.min() >= 0
    assert mapped.max() <= 1
    middle = (mapped > 1e-6) & (mapped < 1 - 1e-6)
    assert (np.diff(mapped[middle]) > 0).all()


@pytest.mark.parametrize("method", [ISOTONIC, Logistic(1.5, -0.25)])
def test_save_and_load_give_the_same_map(tmp_path: Path, method: Method):
    Calibration(method, "abc").save(tmp_path)
    assert Calibration.load(tmp_path) == Calibration(method, "abc")


def test_a_directory_without_one_has_none(tmp_path: Path):
    assert Calibration.load(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "Expecting value"),
        ("[]", "it must be a JSON object"),
        ("{}", "'version' is missing"),
        ({**VALID, "version": 2}, "its version must be 1, not 2"),
        ({**VALID, "method": "spline"}, "its method must be logistic or isotonic, not 'spline'"),
        ({**VALID, "fitted_on": 3}, '"fitted_on" must be a string'),
        ({**VALID, "slope": 0}, "slope above 0"),
        ({**VALID, "slope": -1}, "slope above 0"),
        ({**VALID, "slope": float("nan")}, "must be finite"),
        ({**VALID, "intercept": float("inf")}, "must be finite"),
        ({**VALID, "intercept": 10**400}, "too large"),
        ({**VALID, "slope": "1"}, "'1' must be a number"),
        ({**VALID, "slope": True}, "True must be a number"),
        ({**VALID, "slope": [1]}, "must be a number"),
        ({**VALID_ISOTONIC, "scores": 3}, "its knots must be lists"),
        ({**VALID_ISOTONIC, "scores": [0, 1]}, "it needs as many scores as values"),
        ({**VALID_ISOTONIC, "scores": [0], "values": [0]}, "it needs as many scores as values"),
        ({**VALID_ISOTONIC, "scores": [0, 0.5, 0.9]}, "must begin with 0 and end with 1"),
        ({**VALID_ISOTONIC, "scores": [0, 0.5, 0.5]}, '"scores" must rise'),
        ({**VALID_ISOTONIC, "values": [0, 0.5, 0.4]}, '"values" must rise'),
        ({**VALID_ISOTONIC, "values": [0, 0.5, 1.1]}, '"values" must rise'),
        ({**VALID_ISOTONIC, "values": [0, float("nan"), 1]}, '"values" must rise'),
        ("{" * 100_000, "Expecting"),
        ('{"version":' + "[" * 100_000, "recursion"),
        (" " * 1_000_001, "has more than 1000000 bytes"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: Any, complaint: str):
    path = tmp_path / FILE_NAME
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UnusableModel, match=complaint) as raised:
        Calibration.load(tmp_path)
    assert str(path) in str(raised.value)


def test_too_many_knots_are_refused():
    knots = tuple(np.linspace(0, 1, MAX_KNOTS + 1).tolist())
    with pytest.raises(ValueError, match=f"2 to {MAX_KNOTS}"):
        Isotonic(knots, knots)


def test_what_is_not_utf_8_is_refused(tmp_path: Path):
    (tmp_path / FILE_NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(UnusableModel, match="is not a calibration"):
        Calibration.load(tmp_path)
