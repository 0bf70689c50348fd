"""Formats of data files, and errors of invalid ones."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from textmatch.errors import InvalidInput
from textmatch.io.data_files import FileFormat
from training.examples import (
    ClassPair,
    ScoredPair,
    Triple,
    read_class_pairs,
    read_scored_pairs,
    read_sentences,
    read_triples,
)
from training.labels import ScoreRange

EXPECTED = [ScoredPair("a, b", "c", 0.5), ScoredPair("d", "e", 1.0)]
GIGABYTE = 1 << 30
NAMES = "sentence 1, sentence 2, score"
LOST = "the quote that begins in this line is never closed; the rest of the file is not read"
PAIR_WITH = '{{"text1": "a", "text2": "b", "score": {}}}'


def _write(directory: Path, name: str, content: str) -> Path:
    path = directory / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.tsv", "a, b\tc\t0.5\nd\te\t1\n"),
        ("pairs.txt", "a, b\tc\t0.5\nd\te\t1\n"),
        ("pairs.csv", '"a, b",c,0.5\r\nd,e,1\r\n'),
        ("pairs.csv", 'sentence1,sentence2,score\n"a, b",c,0.5\nd,e,1\n'),
        ("pairs.csv", 'id,Score,Sentence_1,Sentence_2\n1,0.5,"a, b",c\n2,1,d,e\n'),
        ("pairs.tsv", "query\tdocument\tlabel\na, b\tc\t0.5\nd\te\t1\n"),
        (
            "pairs.jsonl",
            '{"text1": "a, b", "text2": "c", "score": 0.5}\n{"score": 1, "text1": "d", "text2": "e"}',
        ),
    ],
)
def test_every_form_gives_the_same_pairs(tmp_path: Path, name: str, content: str):
    assert read_scored_pairs(_write(tmp_path, name, content)) == EXPECTED


@pytest.mark.parametrize(
    ("content", "file_format"),
    [
        ("1\ta, b\tx\tc\t0.5\n2\td\tx\te\t1\n", FileFormat(columns=("2", "4", "5"))),
        (
            "no\tleft\tmore\tright\tgold\n1\ta, b\tx\tc\t0.5\n2\td\tx\te\t1\n",
            FileFormat(columns=("left", "right", "gold")),
        ),
        ("uno\tdue\ttre\na, b\tc\t0.5\nd\te\t1\n", FileFormat(has_header=True)),
    ],
)
def test_the_caller_says_which_columns(tmp_path: Path, content: str, file_format: FileFormat):
    assert read_scored_pairs(_write(tmp_path, "pairs.tsv", content), file_format) == EXPECTED


def test_no_header_on_the_callers_word(tmp_path: Path):
    path = _write(tmp_path, "pairs.tsv", "query\tdocument\tsame\n")
    assert read_class_pairs(path, FileFormat(has_header=False)) == [ClassPair("query", "document", "same")]


def test_a_known_name_twice_is_no_header(tmp_path: Path):
    path = _write(tmp_path, "pairs.tsv", "text\ttext\tsame\nquery\tdocument\tother\n")
    assert len(read_class_pairs(path)) == 2


def test_scores_are_brought_into_the_unit_range(tmp_path: Path):
    path = _write(tmp_path, "pairs.tsv", "a\tb\t0\nc\td\t4\n")
    assert [pair.score for pair in read_scored_pairs(path, score_range=ScoreRange(0, 5))] == [0.0, 0.8]
    with pytest.raises(
        InvalidInput, match=r"line 2 column 3: score 4 is outside 0\.\.1; .* --score-range 0 5"
    ):
        read_scored_pairs(path)


def test_triples(tmp_path: Path):
    path = _write(tmp_path, "triples.csv", "anchor,positive,negative\na,b,c\n")
    assert read_triples(path) == [Triple("a", "b", "c")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.txt", "a b\n\nc\na b\n"),
        ("s.txt", "a b\t1\nc\t0\n"),
        ("s.tsv", "a b\tc\t0.5\n"),
        ("s.jsonl", '{"text": "a b"}\n{"id": 3, "text": "c"}\n'),
        ("s.jsonl", '{"sentence1": "a b", "sentence2": "c", "score": 1}\n'),
    ],
)
def test_sentences_come_from_plain_text_and_from_pairs(tmp_path: Path, name: str, content: str):
    assert read_sentences(_write(tmp_path, name, content)) == ["a b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.csv", 'a,b,0.5\n"a,b,0.5\n', f"line 2: is not CSV: {LOST}"),
        ("p.csv", "a,b\n", "line 1: has 2 columns; it needs 3 columns separated by comma: " + NAMES),
        ("p.csv", "query,document,score\na,b\n", "line 2: has 2 columns; the header has 3"),
        (
            "p.csv",
            "query,document,gold,id\na,b,1,2\n",
            "line 1: has the columns query, document, gold, id; use --columns to choose " + NAMES,
        ),
        ("p.jsonl", PAIR_WITH.format("null"), 'line 1 key "score": must be text or a number'),
        (
            "p.jsonl",
            '{"gold": 1, "left": "a", "right": "b"}',
            "line 1: has the keys gold, left, right; use --columns to choose " + NAMES,
        ),
        ("p.jsonl", '{"text1": "a"', "line 1: is not JSON: Expecting ',' delimiter at column 14"),
        ("p.jsonl", '{"text1": "a", "text2": "b", "score": 1}\n[1]', "line 2: is not a JSON object"),
        ("p.json", "[1]", "line 1: is not a JSON object"),
    ],
)
def test_a_wrong_file_is_reported_in_one_line(tmp_path: Path, name: str, content: str, problem: str):
    path = _write(tmp_path, name, content)
    with pytest.raises(InvalidInput) as raised:
        read_scored_pairs(path)
    assert str(raised.value) == f"{path} {problem}"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.json", "[" + PAIR_WITH.format("1"), "line 1: is not JSON: the array has no end"),
        ("p.xlsx", "PK\x03\x04", "is an Excel workbook or another ZIP file; save the sheet as CSV"),
        ("p.tsv", "\n\n", "has no row; it needs at least one"),
        ("p.jsonl", PAIR_WITH.format("[1]"), "is a list; lists of texts are for simcse --hard-negatives"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, name: str, content: str, problem: str):
    with pytest.raises(InvalidInput, match=problem):
        read_scored_pairs(_write(tmp_path, name, content))


def test_a_column_that_is_not_there(tmp_path: Path):
    path = _write(tmp_path, "p.tsv", "left\tright\tgold\na\tb\t1\n")
    with pytest.raises(
        InvalidInput, match='line 1: there is no column "rite"; the header has left, right, gold'
    ):
        read_scored_pairs(path, FileFormat(columns=("left", "rite", "gold")))
    with pytest.raises(InvalidInput, match="2 are given; 3 are needed: sentence 1, sentence 2, score"):
        read_scored_pairs(path, FileFormat(columns=("left", "right")))


def test_a_line_of_a_gigabyte_is_refused_in_little_memory(tmp_path: Path):
    path = tmp_path / "pairs.tsv"
    with path.open("wb") as file:
        file.write(b"a" * 300 + b"\tb\t1\nlong")
        os.truncate(file.fileno(), GIGABYTE)
    program = (
        "import sys; from pathlib import Path; from training.examples import read_scored_pairs;"
        " read_scored_pairs(Path(sys.argv[1]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=False,
        # Less than the line; what is left is for the interpreter itself.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (GIGABYTE * 3 // 4, GIGABYTE * 3 // 4)),
    )
    assert run.stderr.strip().endswith(f"{path} line 2: is longer than 16,777,216 bytes")
