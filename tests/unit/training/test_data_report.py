from __future__ import annotations

from pathlib import Path

from training.data_files import ClassPair
from training.data_report import DataLeak, TrainingRow, build_report

DEV = Path("data/dev.tsv")
ROWS = [
    TrainingRow(("a cat", "a dog"), "1"),
    TrainingRow(("a dog", "a cat"), "0"),
    TrainingRow(("x" * 40, "y" * 300), "1"),
    TrainingRow(("x" * 40, "y" * 300), "1"),
]


def test_balance_lengths_and_repetitions_are_counted():
    report = build_report(ROWS, {})
    assert report.row_count == 4
    assert report.labels == (("0", 1), ("1", 3))
    assert report.lengths == (("0 to 7", 4), ("32 to 63", 2), ("256 or more", 2))
    assert report.repeated_count == 2
    assert report.contradicted_count == 2


def test_what_of_the_dev_file_was_seen_in_training_is_counted():
    pairs = [ClassPair("a dog", "a cat", "1"), ClassPair("a dog", "new", "0")]
    [leak] = build_report(ROWS, {DEV: pairs}).leaks
    assert leak == DataLeak(DEV, row_count=2, leaked_row_count=1, sentence_count=3, leaked_sentence_count=2)
    assert (
        "of data/dev.tsv, seen in training",
        "1 of 2 rows, 2 of 3 sentences",
    ) in build_report(ROWS, {DEV: pairs}).lines()


def test_many_scores_are_counted_in_groups():
    rows = [TrainingRow((f"a{number}", "b"), f"{number / 100:g}") for number in range(101)]
    labels = build_report(rows, {}).labels
    assert [name for name, _ in labels] == ["0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 to 1"]
    assert sum(count for _, count in labels) == 101


def test_sentences_have_neither_labels_nor_contradictions():
    report = build_report([TrainingRow(("a",)), TrainingRow(("b",))], {})
    assert report.lines() == [
        ("rows", "2"),
        ("characters per text", "0 to 7: 2 (100%)"),
        ("repeated rows", "0"),
    ]
