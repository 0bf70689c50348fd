"""Training examples of data files: pairs, triples, lists of candidates and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmatch.errors import InvalidInput
from textmatch.io.columns import (
    ANCHOR,
    LABEL,
    NEGATIVE,
    PAIR,
    POSITIVE,
    SCORE,
    TRIPLE,
    Column,
)
from textmatch.io.data_files import (
    DETECTED,
    Cell,
    FileFormat,
    find_key,
    read_cells,
    read_records,
    read_sentence_cells,
)
from training.labels import (
    UNIT_RANGE,
    InvalidLabel,
    LabelClasses,
    ScoreRange,
    canonical_label,
    parse_score,
)


@dataclass(frozen=True)
class ScoredPair:
    """Two sentences and their similarity: 0..1, or any number if it was read without a range."""

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class ClassPair:
    """Two sentences and the class of their relation, as `canonical_label` writes it."""

    first: str
    second: str
    label: str


@dataclass(frozen=True)
class Triple:
    """An anchor, a sentence with the same meaning, and a similar one with another meaning."""

    anchor: str
    positive: str
    negative: str


@dataclass(frozen=True)
class CandidateList:
    """A query with texts that answer it or mean the same, at least one, and texts that do not."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


def read_scored_pairs(
    path: Path,
    file_format: FileFormat = DETECTED,
    score_range: ScoreRange | None = UNIT_RANGE,
    classes: LabelClasses | None = None,
) -> list[ScoredPair]:
    """All pairs of a file, in order, with their scores mapped to 0..1; as they are without a range.

    With `classes`, a label is a class and its score is the score of the class.

    Raises:
        InvalidInput: the file is unreadable or empty, or a line is not UTF-8, lacks a column, has an empty
            sentence, or a score that is neither a number in the range nor a known class name; messages name
            file, line and column.
    """
    pairs = []
    for first, second, score in _rows(path, (*PAIR, SCORE), file_format):
        try:
            value = parse_score(score.text, score_range, classes)
        except InvalidLabel as error:
            raise InvalidInput.of_field(score.place, str(error)) from error
        pairs.append(ScoredPair(_sentence(first, "sentence 1"), _sentence(second, "sentence 2"), value))
    return pairs


def read_class_pairs(path: Path, file_format: FileFormat = DETECTED) -> list[ClassPair]:
    """All pairs of a file, in order, with their labels. Labels that are equal as numbers are equal.

    Raises:
        InvalidInput: as in `read_scored_pairs`; any label that is not empty or an infinite number is valid.
    """
    pairs = []
    for first, second, label in _rows(path, (*PAIR, LABEL), file_format):
        try:
            name = canonical_label(_sentence(label, "label"))
        except InvalidLabel as error:
            raise InvalidInput.of_field(label.place, str(error)) from error
        pairs.append(ClassPair(_sentence(first, "sentence 1"), _sentence(second, "sentence 2"), name))
    return pairs


def read_texts(
    path: Path, columns: Sequence[Column], file_format: FileFormat = DETECTED
) -> list[tuple[str, ...]]:
    """The texts of each row of a file, in the order of `columns`.

    Raises:
        InvalidInput: as in `read_scored_pairs`.
    """
    return [
        tuple(_sentence(cell, column.name) for cell, column in zip(cells, columns, strict=True))
        for cells in _rows(path, columns, file_format)
    ]


def read_triples(path: Path, file_format: FileFormat = DETECTED) -> list[Triple]:
    """All triples of a file, in order. A list of candidates gives each of its positives with each negative.

    Raises:
        InvalidInput: as in `read_scored_pairs`; or no list has a negative.
    """
    triples = [
        Triple(one.query, positive, negative)
        for one in _read_lists(path, file_format)
        for positive in one.positives
        for negative in one.negatives
    ]
    if not triples:
        raise InvalidInput.of_field(str(path), "has no list with a negative")
    return triples


def read_candidate_lists(path: Path, file_format: FileFormat = DETECTED) -> list[CandidateList]:
    """The distinct candidates of each query of a file of triples or of lists, in order of appearance.

    A list is an object of JSON: `{"query": "…", "pos": ["…"], "neg": ["…", "…"]}`.

    Raises:
        InvalidInput: as in `read_scored_pairs`; or a list has no positive.
    """
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for one in _read_lists(path, file_format):
        positives, negatives = found.setdefault(one.query, ({}, {}))
        positives.update(dict.fromkeys(one.positives))
        negatives.update(dict.fromkeys(one.negatives))
    return [
        CandidateList(query, tuple(positives), tuple(text for text in negatives if text not in positives))
        for query, (positives, negatives) in found.items()
    ]


def read_sentences(path: Path, file_format: FileFormat = DETECTED) -> list[str]:
    """The distinct sentences of a file of sentences or of pairs, in order of appearance, without labels.

    Raises:
        InvalidInput: the file is unreadable, is not UTF-8 or has no sentence.
    """
    cells = (cell.text for row in read_sentence_cells(path, file_format) for cell in row)
    sentences = list(dict.fromkeys(text for text in cells if text.strip()))
    if not sentences:
        raise InvalidInput.of_field(str(path), "has no sentence")
    return sentences


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> int:
    """Write a new TSV file and return the number of rows. White space within a cell becomes one space.

    Raises:
        InvalidInput: the file exists, or cannot be written.
    """
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write("\t".join(map(one_line, row)) + "\n")
                count += 1
    except FileExistsError as error:
        raise InvalidInput.of_field("output", f'"{path}" already exists') from error
    except OSError as error:
        raise InvalidInput.of_field("output", f'"{path}" cannot be written: {error.strerror}') from error
    return count


def one_line(text: str) -> str:
    """A text with each stretch of white space as one space, as `write_rows` writes it."""
    return " ".join(text.split())


def _rows(path: Path, columns: Sequence[Column], file_format: FileFormat) -> list[list[Cell]]:
    rows = list(read_cells(path, columns, file_format))
    if not rows:
        raise InvalidInput.of_field(str(path), "has no row; it needs at least one")
    return rows


def _read_lists(path: Path, file_format: FileFormat) -> list[CandidateList]:
    """The lists of candidates of a file as they are; each triple is a list of two."""
    records = None if file_format.columns else read_records(path)
    if records is None:
        texts = read_texts(path, TRIPLE, file_format)
        return [CandidateList(query, (positive,), (negative,)) for query, positive, negative in texts]
    return [_list_of_record(record, place) for place, record in records]


def _list_of_record(record: dict[str, Any], place: str) -> CandidateList:
    """A list of an object whose keys are known by name. Each of its values is a text or a list of texts."""
    texts = []
    for column in TRIPLE:
        key = find_key(record, column)
        if key is None and column is not NEGATIVE:
            keys = ", ".join(record)
            problem = f"has the keys {keys}; it needs query, pos and neg, or --columns to choose them"
            raise InvalidInput.of_field(place, problem)
        value = record[key] if key is not None else []
        values = value if isinstance(value, list) and column is not ANCHOR else [value]
        if not all(isinstance(one, str) and one.strip() for one in values):
            raise InvalidInput.of_field(f'{place} key "{key}"', "must hold texts that are not empty")
        if not values and column is POSITIVE:
            raise InvalidInput.of_field(f'{place} key "{key}"', "has no text; a list needs a positive")
        texts.append(tuple(values))
    (query,), positives, negatives = texts
    return CandidateList(query, positives, negatives)


def _sentence(cell: Cell, name: str) -> str:
    if not cell.text.strip():
        raise InvalidInput.of_field(cell.place, f"{name} is empty")
    return cell.text
