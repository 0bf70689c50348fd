"""Documents, queries, and which documents are relevant to which query, from a folder as BEIR lays it out."""

from __future__ import annotations

import json
from collections.abc import Collection as Collected
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from textmatch.cli.lines import UnreadableLine, read_lines
from textmatch.cli.tables import read_rows
from textmatch.errors import InvalidInput
from training.evaluation.resampling import Values
from training.evaluation.retrieval_metrics import Ranks

_QRELS_FILES = ("qrels.tsv", "qrels/test.tsv")
_ID_KEYS = ("id", "_id")


@dataclass(frozen=True)
class Collection:
    """Texts of documents and of the judged queries; `grades` has, by query, the grades by document position.

    Grades above 0 are relevant.
    """

    documents: list[str]
    queries: list[str]
    grades: list[dict[int, float]]

    @property
    def relevant(self) -> Ranks:
        """How many documents are relevant to each query: (queries,)."""
        return np.array([sum(grade > 0 for grade in grades.values()) for grades in self.grades])

    def grades_of(self, ranking: Ranks) -> Values:
        """The grades of ranked documents: (queries, depth), from their positions (queries, depth)."""
        return np.array(
            [
                [grades.get(document, 0.0) for document in row]
                for grades, row in zip(self.grades, ranking.tolist(), strict=True)
            ]
        )

    def ideal(self, depth: int) -> Values:
        """The grades of the best ranking that there could be: (queries, depth)."""
        best = np.zeros((len(self.grades), depth))
        for row, grades in zip(best, self.grades, strict=True):
            highest = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:depth]
            row[: len(highest)] = highest
        return best


def read_collection(directory: Path) -> Collection:
    """Reads corpus.jsonl, queries.jsonl, and qrels.tsv or qrels/test.tsv.

    A title stands before its document's text, unless the text begins with it. Queries without judgements are
    left out; documents without text stay, as those that no query finds.

    Raises:
        InvalidInput: a file is missing, a line cannot be read, an id occurs twice, or a judgement is of
            something that there is not; the message names file and line.
    """
    documents, queries = _read_texts(directory / "corpus.jsonl"), _read_texts(directory / "queries.jsonl")
    qrels = next((path for name in _QRELS_FILES if (path := directory / name).is_file()), None)
    if qrels is None:
        raise InvalidInput.of_field(str(directory), f"has none of {', '.join(_QRELS_FILES)}")
    judged = _read_qrels(qrels, queries, {name: number for number, name in enumerate(documents)})
    for name in judged:
        if not queries[name]:
            raise InvalidInput.of_field(str(directory / "queries.jsonl"), f'the query "{name}" has no text')
    return Collection(list(documents.values()), [queries[name] for name in judged], list(judged.values()))


def _read_texts(path: Path) -> dict[str, str]:
    """The texts by id, in order."""
    texts: dict[str, str] = {}
    for place, record in _records(path):
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


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's place and what it says."""
    with _opened(path) as file:
        for line in read_lines(file):
            place = f"{path} line {line.number}"
            try:
                record = json.loads(line.text())
            except UnreadableLine as error:
                raise InvalidInput.of_field(place, str(error)) from error
            except (ValueError, RecursionError) as error:
                raise InvalidInput.of_field(place, f"is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise InvalidInput.of_field(place, "is not a JSON object")
            yield place, record


def _text(record: Mapping[str, Any], key: str, place: str) -> str:
    value = record.get(key) or ""
    if not isinstance(value, str):
        raise InvalidInput.of_field(place, f'"{key}" is no text')
    return value.strip()


def _read_qrels(
    path: Path, queries: Mapping[str, str], positions: Mapping[str, int]
) -> dict[str, dict[int, float]]:
    """By query id, the grades of documents by their position."""
    judged: dict[str, dict[int, float]] = {}
    with _opened(path) as file:
        for row in read_rows(file, is_tsv=True):
            is_header = row.line_number == 1 and len(row.cells) == 3 and _number(row.cells[2]) is None
            if is_header:
                continue
            place = f"{path} line {row.line_number}"
            problem = row.problem or _qrels_problem(row.cells, queries, positions)
            if problem:
                raise InvalidInput.of_field(place, problem)
            query, document, grade = row.cells
            judged.setdefault(query, {})[positions[document]] = max(0.0, float(grade))
    if not judged:
        raise InvalidInput.of_field(str(path), "is empty")
    return judged


def _qrels_problem(cells: Sequence[str], queries: Collected[str], documents: Collected[str]) -> str:
    """What is wrong with a row, if anything is."""
    if len(cells) != 3:
        return f"has {len(cells)} columns; it needs query id, document id and grade"
    query, document, grade = cells
    if query not in queries:
        return f'there is no query "{query}"'
    if document not in documents:
        return f'there is no document "{document}"'
    return "" if _number(grade) is not None else f'the grade "{grade}" is not a number'


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidInput.of_field(str(path), f"cannot be read: {error.strerror}") from error
