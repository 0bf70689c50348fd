"""Queries and which documents are relevant to them, from files as BEIR lays them out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from textmatch.errors import InvalidInput
from textmatch.io.csv_reader import read_rows
from textmatch.io.line_reader import open_data_file, read_json_objects

_QUERIES_FILE = "queries.jsonl"
_QRELS_FILES = ("qrels.tsv", "qrels/test.tsv")
_ID_KEYS = ("id", "_id")


def read_queries(directory: Path) -> dict[str, str]:
    """The queries of queries.jsonl by id, in their order.

    Raises:
        InvalidInput: naming the file, or the line that cannot be read.
    """
    return read_texts(directory / _QUERIES_FILE)


def read_judgements(
    directory: Path, queries: Mapping[str, str], documents: Collection[str] | None = None
) -> dict[str, dict[str, float]]:
    """The grades of qrels.tsv or qrels/test.tsv: from query id to document id to grade, 0 for not relevant.

    Args:
        queries: the texts of all queries by id.
        documents: the ids of all documents, if they are known.

    Raises:
        InvalidInput: there is no file, a line cannot be read or is about something that there is not, or a
            judged query has no text; the message names file and line.
    """
    path = next((path for name in _QRELS_FILES if (path := directory / name).is_file()), None)
    if path is None:
        raise InvalidInput.of_field(str(directory), f"has none of {', '.join(_QRELS_FILES)}")
    judged: dict[str, dict[str, float]] = {}
    with open_data_file(path) as file:
        for row in read_rows(file, is_tsv=True):
            is_header = row.line_number == 1 and len(row.cells) == 3 and _number(row.cells[2]) is None
            if is_header:
                continue
            if problem := row.problem or _problem(row.cells, queries, documents):
                raise InvalidInput.of_field(f"{path} line {row.line_number}", problem)
            query, document, grade = row.cells
            judged.setdefault(query, {})[document] = max(0.0, float(grade))
    if not judged:
        raise InvalidInput.of_field(str(path), "is empty")
    for name in judged:
        if not queries[name]:
            raise InvalidInput.of_field(str(directory / _QUERIES_FILE), f'the query "{name}" has no text')
    return judged


def read_texts(path: Path) -> dict[str, str]:
    """The texts of JSON lines by id, in their order; a title stands before its text unless that begins so.

    Raises:
        InvalidInput: the file is missing or empty, a line cannot be read, or an id occurs twice.
    """
    texts: dict[str, str] = {}
    with open_data_file(path) as file:
        for place, record in read_json_objects(file, path):
            identity = next((str(record[key]) for key in _ID_KEYS if record.get(key) not in (None, "")), None)
            if identity is None:
                raise InvalidInput.of_field(place, 'has no "id"')
            if identity in texts:
                raise InvalidInput.of_field(place, f'the id "{identity}" occurs twice')
            body, title = (_text(record, key, place) for key in ("text", "title"))
            texts[identity] = body if body.startswith(title) else f"{title} {body}".strip()
    if not texts:
        raise InvalidInput.of_field(str(path), "is empty")
    return texts


def _text(record: Mapping[str, Any], key: str, place: str) -> str:
    value = record.get(key) or ""
    if not isinstance(value, str):
        raise InvalidInput.of_field(place, f'"{key}" is no text')
    return value.strip()


def _problem(cells: Sequence[str], queries: Collection[str], documents: Collection[str] | None) -> str:
    """What is wrong with a row of qrels, if anything is."""
    if len(cells) != 3:
        return f"has {len(cells)} columns; it needs query id, document id and grade"
    query, document, grade = cells
    if query not in queries:
        return f'there is no query "{query}"'
    if documents is not None and document not in documents:
        return f'there is no document "{document}"'
    return "" if _number(grade) is not None else f'the grade "{grade}" is not a number'


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
