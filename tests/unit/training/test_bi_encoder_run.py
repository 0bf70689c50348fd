from __future__ import annotations

import pytest

from textmatch.errors import InvalidInput
from training.bi_encoder_run import LabelClasses, find_classes
from training.data_files import ClassPair


def _pairs(*labels: str) -> list[ClassPair]:
    return [ClassPair("a", "b", label) for label in labels]


@pytest.mark.parametrize(
    ("labels", "chosen", "expected"),
    [
        (["1", "0"], "", LabelClasses(("0", "1"), (0.0, 1.0))),
        (["10", "2", "0"], "", LabelClasses(("0", "2", "10"), (0.0, 0.5, 1.0))),
        (
            ["neutral", "entailment", "contradiction"],
            "",
            LabelClasses(("contradiction", "neutral", "entailment"), (0.0, 0.5, 1.0)),
        ),
        (["yes", "no"], "no=0,yes=0.9", LabelClasses(("no", "yes"), (0.0, 0.9))),
    ],
)
def test_classes_are_found(labels: list[str], chosen: str, expected: LabelClasses):
    assert find_classes(_pairs(*labels), chosen) == expected


@pytest.mark.parametrize(
    ("labels", "chosen", "problem"),
    [
        (["abc", "def"], "", "give the score of each class with --classes.* the file has abc, def"),
        (["1", "1"], "", 'all pairs have the class "1"'),
        (["yes", "no"], "no=0,yes=2", '"yes=2" needs a name and a score in 0..1'),
        (["yes", "no"], "no,yes=1", '"no" is not NAME=SCORE'),
        (["yes", "maybe"], "no=0,yes=1", 'train row 2: class "maybe" is not one of no, yes'),
    ],
)
def test_what_cannot_be_classes_is_reported(labels: list[str], chosen: str, problem: str):
    with pytest.raises(InvalidInput, match=problem):
        find_classes(_pairs(*labels), chosen)


def test_a_new_class_in_another_file_is_reported():
    with pytest.raises(InvalidInput, match='dev row 1: class "2" is not one of 0, 1'):
        find_classes(_pairs("0", "1"), "").check(_pairs("2"), "dev")
