"""Folders in BEIR's layout as people have them: headers, marks of byte order, and blank lines at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from textmatch.io.line_reader import UnreadableFile
from textmatch.io.qrels import read_judgements, read_queries, read_texts


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path / "queries.jsonl", '\ufeff{"_id": "q", "text": "where is it", "metadata": {}}\r\n\r\n')
    _write(
        tmp_path / "corpus.jsonl",
        '{"_id": "d", "title": "Lost", "text": "here"}\n\n{"_id": "e", "text": "x"}\n \n',
    )
    _write(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq\td\t1\n\n")
    return tmp_path


def test_blank_lines_are_no_rows(folder: Path):
    queries, documents = read_queries(folder), read_texts(folder / "corpus.jsonl")
    assert documents == {"d": "Lost here", "e": "x"}
    assert read_judgements(folder, queries, documents) == {"q": {"d": 1.0}}


def test_judgements_of_another_file(folder: Path):
    queries, other = read_queries(folder), folder / "qrels" / "dev.tsv"
    _write(other, "q\te\t2\n")
    assert read_judgements(folder, queries, None, other) == {"q": {"e": 2.0}}
    _write(other, "q\te\n")
    with pytest.raises(UnreadableFile, match="line 1: has 2 columns; it must have query id"):
        read_judgements(folder, queries, None, other)
