from __future__ import annotations

from pathlib import Path

from rich.console import Console
from transformers import BertTokenizer

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
    pairs = [("a dog", "a cat"), ("a dog", "new")]
    [leak] = build_report(ROWS, {DEV: pairs}).leaks
    assert leak == DataLeak(DEV, row_count=2, leaked_row_count=1, sentence_count=3, leaked_sentence_count=2)
    assert (
        "of data/dev.tsv, seen in training",
        "1 of 2 rows, 2 of 3 sentences",
    ) in build_report(ROWS, {DEV: pairs}).lines()


def test_leaks_are_warned_of():
    [warning] = build_report(ROWS, {DEV: [("a dog", "a cat"), ("a dog", "new")]}).warnings()
    assert warning.startswith("1 of the 2 rows of data/dev.tsv are in the training data")
    [warning] = build_report(ROWS, {DEV: [("a dog", "new")]}).warnings()
    assert warning.startswith("50% of the sentences of data/dev.tsv are in the training data")
    assert build_report(ROWS, {DEV: [("old", "new")]}).warnings() == []


def test_sentences_that_are_learnt_from_besides_are_leaks_too():
    """As those of a warm-up are, which teach the model similarities without labels."""
    dev = {DEV: [("old", "new")]}
    assert build_report(ROWS, dev).leaks[0].leaked_sentence_count == 0
    assert build_report(ROWS, dev, other_sentences=["new", "x"]).leaks[0].leaked_sentence_count == 1


def test_special_tokens_in_texts_are_warned_of(tmp_path: Path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    tokenizer = BertTokenizer(vocab=str(vocabulary))
    report = build_report([TrainingRow(("a [SEP] a", "a (SEP)"), "1")], {}, tokenizer)
    assert any(one.startswith("1 texts contain special tokens") for one in report.warnings())


def test_many_scores_are_counted_in_groups():
    rows = [TrainingRow((f"a{number}", "b"), f"{number / 100:g}") for number in range(101)]
    labels = build_report(rows, {}).labels
    assert [name for name, _ in labels] == ["0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 to 1"]
    assert sum(count for _, count in labels) == 101


def test_many_named_classes_are_counted_together():
    rows = [TrainingRow((f"a{number}", "b"), f"topic {number % 12}") for number in range(30)]
    labels = build_report(rows, {}).labels
    assert labels[0] == ("topic 0", 3)
    assert labels[-1] == ("others", 4)


def test_tokens_that_the_model_does_not_know_are_counted(tmp_path: Path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\ncat\n")
    tokenizer = BertTokenizer(vocab=str(vocabulary))
    rows = [TrainingRow(("a cat", "猫在睡觉")), TrainingRow(("a cat", "a cat"))]
    report = build_report(rows, {}, tokenizer)
    assert report.unknown_share == 0.4
    assert ("tokens unknown to the model", "40.0%") in report.lines()
    console = Console(width=200)
    with console.capture() as printed:
        report.print_to(console)
    assert "warning: the model does not know 40% of the tokens" in printed.get()
    readable = build_report(rows[1:], {}, tokenizer)
    with console.capture() as printed:
        readable.print_to(console)
    assert readable.unknown_share == 0.0
    assert "warning" not in printed.get()


def test_sentences_have_neither_labels_nor_contradictions():
    report = build_report([TrainingRow(("a",)), TrainingRow(("b",))], {})
    assert report.lines() == [
        ("rows", "2"),
        ("characters per text", "0 to 7: 2 (100%)"),
        ("repeated rows", "0"),
    ]
