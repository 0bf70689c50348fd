"""The training commands: errors of invalid files are one line; triples are mined and trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from textmatch.cli.__main__ import main


def _train(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


@pytest.mark.parametrize(
    ("recipe", "content", "problem"),
    [
        ("regression", b"only\ttwo\n", "line 1: has 2 columns; it needs 3 columns separated by TAB"),
        ("siamese", b"a\tb\tabc\n", 'line 1 column 3: score "abc" is not a number'),
        ("regression", b"a\tb\t0.5\na\tb\t7\n", "line 2 column 3: score 7 is outside 0..1"),
        ("sbert", b"a\tb\tabc\na\tb\tdef\n", "classes: give the score of each class with --classes"),
        ("simcse", b"", "is empty; it needs at least one row"),
        ("simcse", b"\n \n", "has no sentence"),
        ("mlm", "汉字\n".encode("utf-16"), "line 1: is UTF-16 or binary; save the file as UTF-8"),
        ("siamese", "汉\t字\t1\n".encode("gbk"), "line 1: is not UTF-8: byte 0xba at byte 1 of the line"),
    ],
)
def test_a_wrong_file_is_one_line(
    bases: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recipe: str,
    content: bytes,
    problem: str,
):
    path = tmp_path / "data.tsv"
    path.write_bytes(content)
    exit_code = _train(recipe, "--base", bases["bert"], "--train", path, "--output", tmp_path / "model")
    stderr = capsys.readouterr().err
    assert exit_code == 1
    assert problem in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_crlf_files_train(bases: dict[str, Path], binary: Path, tmp_path: Path):
    path = tmp_path / "crlf.tsv"
    path.write_bytes(binary.read_bytes().replace(b"\n", b"\r\n"))
    options = ["--epochs", 1, "--device", "cpu", "--max-length-tokens", 32]
    assert (
        _train("sbert", "--base", bases["bert"], "--train", path, "--output", tmp_path / "model", *options)
        == 0
    )
    assert (tmp_path / "model" / "modules.json").is_file()


def test_negatives_are_mined_and_trained_on(
    bases: dict[str, Path], scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    triples = tmp_path / "triples.tsv"
    options = ["--model", bases["bert"], "--margin", 0, "--negatives", 2, "--device", "cpu"]
    assert _train("mine", "--pairs", scored, "--output", triples, *options) == 0
    lines = [line.split("\t") for line in triples.read_text().splitlines()]
    assert lines[0] == ["anchor", "positive", "negative"]
    pairs = [line.split("\t") for line in scored.read_text().splitlines()]
    positives = {(first, second) for first, second, score in pairs if float(score) >= 0.5}
    assert {(anchor, positive) for anchor, positive, _ in lines[1:]} <= positives
    assert all(negative not in (anchor, positive) for anchor, positive, negative in lines[1:])
    assert not {(anchor, negative) for anchor, _, negative in lines[1:]} & positives

    short = ["--epochs", 1, "--device", "cpu", "--max-length-tokens", 32, "--held-out", scored]
    files = ["--base", bases["bert"], "--train", triples, "--output", tmp_path / "model"]
    assert _train("simcse", "--hard-negatives", *files, *short) == 0
    assert "spearman" in capsys.readouterr().out


def test_every_option_of_the_settings_is_reported(capsys: pytest.CaptureFixture[str]):
    assert _train("siamese", "--help") == 0
    told = capsys.readouterr().out
    for option in ("--lstm-width", "--towers", "--lr-schedule", "--resume", "--no-header", "--accumulate"):
        assert option in told
