"""One notion of a label: equal as numbers, finite, with an order and a worth."""

from __future__ import annotations

import subprocess
import sys

import pytest

from textmatch.errors import InvalidInput
from training.labels import (
    InvalidLabel,
    LabelClasses,
    ScoreRange,
    canonical_label,
    find_classes,
    parse_classes,
    parse_score,
    require_two_scores,
)


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
        (["yes", "no"], "", LabelClasses(("no", "yes"), (0.0, 1.0))),
        (["相似", "不相似"], "", LabelClasses(("不相似", "相似"), (0.0, 1.0))),
        (["yes", "no"], "no=0,yes=0.9", LabelClasses(("no", "yes"), (0.0, 0.9))),
        (["-1", "1"], "-1=0,1.0=1", LabelClasses(("-1", "1"), (0.0, 1.0))),
    ],
)
def test_classes_are_found(labels: list[str], chosen: str, expected: LabelClasses):
    assert find_classes(labels, chosen) == expected


@pytest.mark.parametrize(
    ("labels", "chosen", "problem"),
    [
        (["abc", "def"], "", "give the score of each class with --classes.* the file has abc, def"),
        (["1", "1"], "", 'all pairs have the class "1"'),
        (["1", "1"], "0=0,1=1", 'all pairs have the class "1"'),
        (["yes", "no"], "no=0,yes=2", '"yes=2" needs a name and a score in 0..1'),
        (["yes", "no"], "no,yes=1", '"no" is not NAME=SCORE'),
        (["1", "0"], "1=0,1.0=1", 'the class "1" is given twice'),
        (["1", "0"], "nan=0,1=1", 'label "nan" is not a finite number'),
        (["yes", "maybe"], "no=0,yes=1", 'train row 2: class "maybe" is not one of no, yes'),
        (["0", "1", "-1"], "", 'the label "-1" marks pairs without a label in many data sets'),
        (["entailment", "-", "neutral"], "", 'the label "-" marks pairs without a label'),
        ([str(number / 8) for number in range(40)], "", "40 different labels: these are scores"),
    ],
)
def test_what_cannot_be_classes_is_reported(labels: list[str], chosen: str, problem: str):
    with pytest.raises(InvalidInput, match=problem):
        find_classes(labels, chosen)


def test_a_new_class_in_another_file_is_reported():
    with pytest.raises(InvalidInput, match='dev row 1: class "2" is not one of 0, 1'):
        find_classes(["0", "1"], "").check(["2"], "dev")


def test_equal_labels_are_one_class():
    """Reduced from a file that wrote 1 and 1.0: it had four classes, in an order of the hash seed."""
    found = {canonical_label(text) for text in ("3", "3.0", " 3", "03", "3e0", "+3", "３")}
    assert found == {"3"}
    assert canonical_label("0.50") == canonical_label(".5") == "0.5"
    assert canonical_label("-0.0") == "0"
    assert canonical_label("Entailment") == "entailment"
    assert canonical_label("Urgent") == "Urgent"
    assert canonical_label("1_000") == "1_000"


def test_the_order_of_classes_does_not_depend_on_the_hash_seed():
    program = (
        "from training.labels import find_classes; print(find_classes(['b', '2', 'a'], 'b=1,2=0.5,a=0'))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {"b (score 1), 2 (score 0.5), a (score 0)\n"}


@pytest.mark.parametrize("label", ["nan", "inf", "-Infinity"])
def test_a_label_that_is_not_finite_is_refused(label: str):
    with pytest.raises(InvalidLabel, match="is not a finite number"):
        canonical_label(label)


def test_scores_have_a_range_or_a_name():
    assert parse_score("4", ScoreRange(0, 5)) == 0.8
    assert parse_score("Yes") == parse_score("蕴含", ScoreRange(0, 5)) == 1.0
    assert parse_score("-7", None) == -7.0
    with pytest.raises(InvalidLabel, match=r"score 4 is outside 0\.\.1; for other scores use --score-range"):
        parse_score("4")


def test_classes_have_scores_of_their_own():
    """Models of three classes could not be evaluated."""
    classes = parse_classes("urgent=1,later=0.25,2=0")
    assert [parse_score(text, classes=classes) for text in ("urgent ", "later", "2.0")] == [1.0, 0.25, 0.0]
    with pytest.raises(InvalidLabel, match='class "yes" is not one of urgent, later, 2'):
        parse_score("yes", classes=classes)


@pytest.mark.parametrize("limits", [(1.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_an_empty_range_is_refused(limits: tuple[float, float]):
    with pytest.raises(InvalidInput, match="the lowest score must be below the highest"):
        ScoreRange.of_option(limits)


def test_one_score_for_all_pairs_teaches_nothing():
    require_two_scores([0.0, 1.0], "")
    with pytest.raises(InvalidInput, match=r"all pairs have the score 1; .* Use --loss in-batch"):
        require_two_scores([1.0, 1.0], "Use --loss in-batch.")
