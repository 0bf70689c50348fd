from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from textmatch.errors import InvalidInput
from training.distill import DistillSettings, LossName, ScoredList, distill_loss, list_dataset

NAN = math.nan
TEACHER = torch.tensor([[3.0, 1.0, -2.0], [0.5, 2.0, NAN]])


@pytest.mark.parametrize("name", ["mse", "margin-mse", "kl"])
def test_a_student_that_agrees_has_no_loss(name: LossName):
    student = TEACHER.nan_to_num(nan=7.0)
    assert distill_loss(name, student, TEACHER, 2.0).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("name", "sees_offset"), [("mse", True), ("margin-mse", False), ("kl", False)])
def test_only_mse_sees_an_offset_of_a_whole_list(name: LossName, sees_offset: bool):
    student = TEACHER.nan_to_num() + torch.tensor([[5.0], [-3.0]])
    assert (distill_loss(name, student, TEACHER).item() > 0.1) == sees_offset


def test_values_are_those_of_the_formulas():
    student = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
    # Errors: -1, 0, 2 and -0.5, -2.
    assert distill_loss("mse", student, TEACHER).item() == pytest.approx((1 + 0 + 4 + 0.25 + 4) / 5)
    # Margins: 1 and 2 instead of 2 and 5; 0 instead of -1.5.
    assert distill_loss("margin-mse", student, TEACHER).item() == pytest.approx((1 + 9 + 2.25) / 3)
    divergences = []
    for row, count in ((0, 3), (1, 2)):
        wanted, found = (torch.softmax(one[row, :count] / 2, dim=0) for one in (TEACHER, student))
        divergences.append(float((wanted * (wanted / found).log()).sum()))
    assert distill_loss("kl", student, TEACHER, 2.0).item() == pytest.approx(
        4 * sum(divergences) / 2, rel=1e-5
    )


@pytest.mark.parametrize("name", ["mse", "margin-mse", "kl"])
def test_a_missing_candidate_counts_for_nothing(name: LossName):
    student = TEACHER.nan_to_num().clone()
    student[0, 1] = 4.0
    loss = distill_loss(name, student, TEACHER)
    student[1, 2] = 1000.0
    assert distill_loss(name, student, TEACHER).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("name", ["mse", "margin-mse", "kl"])
def test_gradient_descent_orders_a_list_as_the_teacher_does(name: LossName):
    student = torch.zeros(2, 3, requires_grad=True)
    optimizer = torch.optim.SGD([student], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        distill_loss(name, student, TEACHER).backward()
        optimizer.step()
    assert student[0, 0] > student[0, 1] > student[0, 2]
    assert student[1, 1] > student[1, 0]
    assert student[1, 2].item() == 0.0


def test_a_long_list_is_split_and_keeps_its_first_candidate():
    long = ScoredList("q", ("a", "b", "c", "d"), (4.0, 3.0, 2.0, 1.0))
    assert long.split(3) == [
        ScoredList("q", ("a", "b", "c"), (4.0, 3.0, 2.0)),
        ScoredList("q", ("a", "d"), (4.0, 1.0)),
    ]
    assert long.split(8) == [long]
    assert ScoredList("q", ("a",), (1.0,)).split(2) == [ScoredList("q", ("a",), (1.0,))]


def test_lists_of_different_lengths_make_one_dataset():
    dataset = list_dataset(
        [ScoredList("q", ("a", "b", "c"), (3.0, 2.0, 1.0)), ScoredList("r", ("d",), (4.0,))]
    )
    assert dataset.column_names == ["sentence1", "sentence2", "candidate2", "candidate3", "label"]
    assert dataset[1] | {"label": None} == {
        "sentence1": "r",
        "sentence2": "d",
        "candidate2": "",
        "candidate3": "",
        "label": None,
    }
    assert dataset[0]["label"] == [3.0, 2.0, 1.0]
    first, *others = dataset[1]["label"]
    assert first == 4.0
    assert all(map(math.isnan, others))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "give --candidates with a --teacher, or --teacher-scores"),
        ({"candidates": [Path("c")]}, "--candidates and --teacher need each other"),
        ({"teacher": "t", "train": [Path("p")]}, "--candidates and --teacher need each other"),
        ({"teacher_scores": [Path("s")], "pooling": "cls"}, "a cross-encoder has none"),
        ({"teacher_scores": [Path("s")], "mix": "1,2"}, "there are 1 parts"),
        ({"teacher_scores": [Path("s")], "start_adapter": "a"}, "needs the --adapter-rank"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, object], problem: str):
    with pytest.raises(InvalidInput, match=problem):
        DistillSettings(output=tmp_path / "model", device="cpu", **options).check()  # type: ignore[arg-type]
