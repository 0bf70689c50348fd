"""Queries and relevance judgements (qrels) in the file layout of BEIR."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from textmatch.io.csv_reader import read_rows
from textmatch.io.file_format import Format
from textmatch.io.line_reader import UnreadableFile, open_data_file
from textmatch.io.record_reader import read_objects

_QUERIES_FILE = "queries.jsonl"
_QRELS_FILES = ("qrels.tsv", "qrels/test.tsv")
ID_KEYS = ("id", "_id")


def read_queries(directory: Path) -> dict[str, str]:
    """The queries of queries.jsonl by id, in their order.

    Raises:
        UnreadableFile: as for `read_texts`.
    """
    return read_texts(directory / _QUERIES_FILE)


def read_judgements(
    directory: Path,
    queries: Mapping[str, str],
    documents: Collection[str] | None = None,
    path: Path | None = None,
) -> dict[str, dict[str, float]]:
    """The grades in qrels.tsv or qrels/test.tsv: query id -> document id -> grade, 0 for not relevant.

    Args:
        directory: of the set.
        queries: the texts of all queries by id.
        documents: the ids of all documents; None: they are not known.
        path: of another file of judgements.

    Raises:
        UnreadableFile: there is no file, a line cannot be read or names an unknown query or document, or a
            judged query has no text.
    """
    path = path or next((path for name in _QRELS_FILES if (path := directory / name).is_file()), None)
    if path is None:
        raise UnreadableFile.of_field(str(directory), f"must contain {' or '.join(_QRELS_FILES)}")
    judged: dict[str, dict[str, float]] = {}
    with open_data_file(path) as file:
        for row in read_rows(file, is_tsv=True):
            is_header = row.line_number == 1 and len(row.cells) == 3 and _number(row.cells[2]) is None
            if is_header or (row.is_blank and not row.problem):
                continue
            if problem := row.problem or _problem(row.cells, queries, documents):
                raise UnreadableFile.of_field(f"{path} line {row.line_number}", problem)
            query, document, grade = row.cells
            judged.setdefault(query, {})[document] = max(0.0, float(grade))
    if not judged:
        raise UnreadableFile.of_field(str(path), "is empty")
    for name in judged:
        if not queries[name]:
            raise UnreadableFile.of_field(str(directory / _QUERIES_FILE), f'the query "{name}" has no text')
    return judged


def read_texts(path: Path) -> dict[str, str]:
    """The texts of a JSON lines file by id, in their order.

    A title is put before its text, unless the text begins with it.

    Raises:
        UnreadableFile: the file is missing or empty, a line cannot be read, or an id occurs twice.
    """
    texts: dict[str, str] = {}
    with open_data_file(path) as file:
        for place, record in read_objects(file, Format.JSONL, path):
            identity = next((str(record[key]) for key in ID_KEYS if record.get(key) not in (None, "")), None)
            if identity is None:
                raise UnreadableFile.of_field(place, 'has no "id"')
            if identity in texts:
                raise UnreadableFile.of_field(place, f'the id "{identity}" occurs twice')
            body, title = (_text(record, key, place) for key in ("text", "title"))
            texts[identity] = text_with_title(title, body)
    if not texts:
        raise UnreadableFile.of_field(str(path), "is empty")
    return texts


def text_with_title(title: str, text: str) -> str:
    """A text behind its title, unless it begins with it."""
    return text if text.startswith(title) else f"{title} {text}".strip()


def _text(record: Mapping[str, Any], key: str, place: str) -> str:
    value = record.get(key) or ""
    if not isinstance(value, str):
        raise UnreadableFile.of_field(place, f'"{key}" must be a string')
    return value.strip()


def _problem(cells: Sequence[str], queries: Collection[str], documents: Collection[str] | None) -> str:
    """What is wrong with a row of qrels; "" if nothing is."""
    if len(cells) != 3:
        return f"has {len(cells)} columns; it must have query id, document id and grade"
    query, document, grade = cells
    if query not in queries:
        return f'unknown query "{query}"'
    if documents is not None and document not in documents:
        return f'unknown document "{document}"'
    return "" if _number(grade) is not None else f'grade must be a number, not "{grade}"'


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
