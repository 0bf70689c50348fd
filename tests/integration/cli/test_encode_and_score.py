"""`textmatch encode` and `textmatch score` against a scripted server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.integration.cli.running import run
from tests.support.scripted_encoder_servicer import DIMENSION, ScriptedEncoder
from tests.support.scripted_servicer import RunningServer
from textmatch.cli.__main__ import main


def test_encode_as_json_lines(encoder_server: RunningServer, capsys: pytest.CaptureFixture[str]):
    arguments = ["encode", "ab", "猫" * 200, "--json", "--encoder", encoder_server.address]
    code, answers, err = run(arguments, capsys)
    assert (code, err) == (0, "")
    assert answers[0] == {
        "text": "ab",
        "embedding": [2.0] * DIMENSION,
        "model_id": "tiny-0123456789ab",
        "truncated": False,
    }
    assert answers[1]["text"] == "猫" * 200
    assert answers[1]["truncated"] is True


def test_encode_keeps_every_bit_of_a_float32(
    encoder_server: RunningServer, encoder: ScriptedEncoder, capsys: pytest.CaptureFixture[str]
):
    encoder.scale = 1 / 3
    _, [answer], _ = run(["encode", "ab", "--json", "--encoder", encoder_server.address], capsys)
    assert np.float32(answer["embedding"][0]) == np.float32(2) * np.float32(1 / 3)


def test_encode_for_people(encoder_server: RunningServer, capsys: pytest.CaptureFixture[str]):
    assert main(["encode", "two words", "--encoder", encoder_server.address]) == 0
    out = capsys.readouterr().out
    assert f"embedding ({DIMENSION} components)" in out
    assert "9.000, 9.000" in out
    assert "model tiny-0123456789ab" in out


def test_score_of_two_texts(encoder_server: RunningServer, capsys: pytest.CaptureFixture[str]):
    code, [answer], _ = run(["score", "ab", "abcd", "--json", "--encoder", encoder_server.address], capsys)
    assert code == 0
    assert answer == {"score": 0.5, "raw": 1.0, "model_id": "pair-0123456789ab", "truncated": False}
    assert main(["score", "ab", "abcd", "--encoder", encoder_server.address]) == 0
    assert capsys.readouterr().out == "0.500\tab\tabcd\n"


def test_scores_of_a_file_come_in_its_order(
    encoder_server: RunningServer,
    encoder: ScriptedEncoder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    file = tmp_path / "pairs.tsv"
    pairs = [("x" * (1 + number % 7), '"' * 7) for number in range(600)]
    file.write_bytes(b"\xef\xbb\xbf" + b"".join(f"{a}\t{b}\r\n".encode() for a, b in pairs))
    arguments = ["score", "--file", str(file), "--json", "--encoder", encoder_server.address]
    code, answers, _ = run(arguments, capsys)
    assert code == 0
    assert [answer["score"] for answer in answers] == pytest.approx([len(a) / 7 for a, _ in pairs])


def test_labels_are_passed_through(
    encoder_server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "pairs.tsv"
    file.write_text("ab\tabcd\t1\nab\tabcd\nab\tabcd\tnot quite\nab\tabcd\t\n")
    arguments = ["score", "--file", str(file), "--encoder", encoder_server.address]
    code, answers, _ = run([*arguments, "--json"], capsys)
    assert code == 0
    assert [answer.get("label") for answer in answers] == ["1", None, "not quite", ""]
    assert "label" not in answers[1]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0.500\tab\tabcd\t1",
        "0.500\tab\tabcd",
        "0.500\tab\tabcd\tnot quite",
        "0.500\tab\tabcd\t",
    ]


NEEDED = "it needs 2 or 3 columns separated by TAB: sentence 1, sentence 2, label"


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("pairs.csv", "标签,句子1,句子2\n1,ab,abcd\n", []),
        ("pairs.json", '[\n {"query": "ab", "document": "abcd", "label": 1}\n]', []),
        ("pairs.csv", "7;ab;abcd;1\n\n", ["--columns", "2,3,4"]),
        ("pairs.csv", "nr\ta\tb\tlabel\n7\tab\tabcd\t1\n", ["--columns", "a,b,label"]),
    ],
)
def test_pairs_of_every_format(
    encoder_server: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    options: list[str],
):
    file = tmp_path / name
    file.write_text(content)
    arguments = ["score", "--file", str(file), *options, "--json", "--encoder", encoder_server.address]
    code, [answer], _ = run(arguments, capsys)
    assert code == 0
    assert (answer["score"], answer["label"]) == (0.5, "1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("only one", f"line 2: has 1 columns; {NEEDED}"),
        ("a\tb\t1\td", f"line 2: has 4 columns; {NEEDED}; choose them with --columns"),
        ("a\t \t1", "line 2 column 2: second text: is empty"),
        ("a\t ", "line 2 column 2: second text: is empty"),
    ],
)
def test_a_line_that_is_no_pair_is_named(
    encoder_server: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
):
    file = tmp_path / "pairs.tsv"
    file.write_text(f"a\tb\n{line}\na\tb\n")
    assert main(["score", "--file", str(file), "--json", "--encoder", encoder_server.address]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"textmatch: {file} {message}\n"
    assert captured.out == ""


def test_embeddings_of_the_models_own_length(
    encoder_server: RunningServer, capsys: pytest.CaptureFixture[str]
):
    arguments = ["encode", "ab", "--no-normalize", "--json", "--encoder", encoder_server.address]
    code, [answer], _ = run(arguments, capsys)
    assert (code, answer["embedding"]) == (0, [-2.0] * DIMENSION)


def test_texts_that_are_too_long_are_refused_if_asked(
    encoder_server: RunningServer, capsys: pytest.CaptureFixture[str]
):
    arguments = ["encode", "ab", "x" * 101, "--truncate", "error", "--encoder", encoder_server.address]
    assert main(arguments) == 1
    assert "has 101 tokens; the model reads 100" in capsys.readouterr().err


def test_the_classes_of_a_pair(
    encoder_server: RunningServer, encoder: ScriptedEncoder, capsys: pytest.CaptureFixture[str]
):
    encoder.labels = ("entailment", "neutral", "contradiction")
    code, [answer], _ = run(["score", "ab", "abcd", "--json", "--encoder", encoder_server.address], capsys)
    assert code == 0
    assert answer["classes"] == {"entailment": 0.5, "neutral": 0.25, "contradiction": 0.25}
