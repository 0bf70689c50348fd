"""Training examples in TSV, CSV and JSON lines files: pairs, triples, lists of candidates, sentences.

A column is found by the `--columns` option, else by the names in the header, else by its position.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from textmatch.errors import InvalidInput
from textmatch.io.csv_reader import Row, read_rows
from textmatch.io.line_reader import open_data_file, read_json_objects

_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NOT_A_LETTER_OR_DIGIT = re.compile(r"[\W_]+")

Score = TypeVar("Score", float, NDArray[np.float64])


@dataclass(frozen=True)
class Column:
    """A column that a recipe reads, and the header names that identify it."""

    name: str
    header_names: frozenset[str]


def _column(name: str, header_names: str) -> Column:
    return Column(name, frozenset(header_names.split()))


# Header names are compared without case, spaces and punctuation: "Sentence_1" is "sentence1".
SENTENCE_1 = _column("sentence 1", "sentence1 text1 question1 premise query sentencea texta anchor")
SENTENCE_2 = _column(
    "sentence 2", "sentence2 text2 question2 hypothesis document sentenceb textb positive text passage"
)
LABEL = _column("label", "label goldlabel class isduplicate score similarity")
SCORE = _column("score", "score similarity label isduplicate")
ANCHOR = _column("anchor", "anchor query question sentence1 premise")
POSITIVE = _column("positive", "positive answer document sentence2 entailment")
NEGATIVE = _column("negative", "negative hardnegative sentence3 contradiction")
TEXT = _column("text", "text sentence content")

PAIR = (SENTENCE_1, SENTENCE_2)
_TRIPLE = (ANCHOR, POSITIVE, NEGATIVE)
_COLUMNS_OF_TABLES = (*PAIR, LABEL, SCORE, ANCHOR, POSITIVE, NEGATIVE)
# Keys of a list of candidates in JSON lines, the format of FlagEmbedding.
_LIST_KEYS = _POSITIVES, _NEGATIVES = ("pos", "neg")


@dataclass(frozen=True)
class FileFormat:
    """The layout of data files, as the options describe it.

    `has_header` None: the header is detected. `columns` are the names, or the numbers from 1, of the columns
    to read, in the recipe's order; empty: they are found.
    """

    has_header: bool | None = None
    columns: tuple[str, ...] = ()

    @classmethod
    def of_options(cls, header: bool | None, columns: str) -> Self:
        """The format that `--header` and `--columns`, a list separated by commas, describe."""
        return cls(header, tuple(name.strip() for name in columns.split(",")) if columns else ())


DETECTED = FileFormat()


@dataclass(frozen=True)
class ScoreRange:
    """The lowest and the highest score that a file may contain."""

    lowest: float = 0.0
    highest: float = 1.0

    @classmethod
    def of_option(cls, limits: tuple[float, float]) -> Self:
        """The range that `--score-range` gives.

        Raises:
            InvalidInput: it is empty.
        """
        # Also refuses NaN, for which every comparison is false.
        if not limits[0] < limits[1]:
            raise InvalidInput.of_field("score-range", "the lowest score must be below the highest")
        return cls(*limits)

    def normalise(self, score: Score) -> Score:
        """A score, or each of an array of scores, mapped from this range to 0..1."""
        return (score - self.lowest) / (self.highest - self.lowest)

    def denormalise(self, share: float) -> float:
        """A score in 0..1 mapped to this range."""
        return self.lowest + share * (self.highest - self.lowest)


UNIT_RANGE = ScoreRange()


@dataclass(frozen=True)
class ScoredPair:
    """Two sentences and their similarity: 0..1, or any number if it was read without a range."""

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class ClassPair:
    """Two sentences and the class of their relation."""

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


@dataclass(frozen=True)
class _Cell:
    """One cell; `place` names file, line and column."""

    text: str
    place: str


def read_scored_pairs(
    path: Path, file_format: FileFormat = DETECTED, score_range: ScoreRange | None = UNIT_RANGE
) -> list[ScoredPair]:
    """All pairs of a file, in order, with their scores mapped to 0..1; as they are without a range.

    Raises:
        InvalidInput: the file is unreadable or empty, or a line is not UTF-8, is blank, lacks a column, has
            an empty sentence, or a score that is not a number in the range; messages name file, line and
            column.
    """
    return [
        ScoredPair(
            _sentence(first, "sentence 1"), _sentence(second, "sentence 2"), _score(score, score_range)
        )
        for first, second, score in _read_cells(path, (*PAIR, SCORE), file_format)
    ]


def read_class_pairs(path: Path, file_format: FileFormat = DETECTED) -> list[ClassPair]:
    """All pairs of a file, in order, with their labels as the file has them.

    Raises:
        InvalidInput: as in `read_scored_pairs`; any label that is not empty is valid.
    """
    return [
        ClassPair(
            _sentence(first, "sentence 1"), _sentence(second, "sentence 2"), _sentence(label, "label").strip()
        )
        for first, second, label in _read_cells(path, (*PAIR, LABEL), file_format)
    ]


def read_texts(
    path: Path, columns: Sequence[Column], file_format: FileFormat = DETECTED
) -> list[tuple[str, ...]]:
    """The texts of each row of a file, in the order of `columns`.

    Raises:
        InvalidInput: as in `read_scored_pairs`.
    """
    return [
        tuple(_sentence(cell, column.name) for cell, column in zip(cells, columns, strict=True))
        for cells in _read_cells(path, columns, file_format)
    ]


def read_triples(path: Path, file_format: FileFormat = DETECTED) -> list[Triple]:
    """All triples of a file, in order. A list of candidates gives each of its positives with each negative.

    Raises:
        InvalidInput: as in `read_scored_pairs`.
    """
    return [
        Triple(one.query, positive, negative)
        for one in _read_lists(path, file_format)
        for positive in one.positives
        for negative in one.negatives
    ]


def read_candidate_lists(path: Path, file_format: FileFormat = DETECTED) -> list[CandidateList]:
    """The distinct candidates of each query of a file of triples or of lists, in order of appearance.

    A list is a line of JSON: `{"query": "…", "pos": ["…"], "neg": ["…", "…"]}`.

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


def read_sentences(path: Path) -> list[str]:
    """The distinct sentences of a file of sentences or of pairs, in order of appearance, without labels.

    Raises:
        InvalidInput: the file is unreadable, is not UTF-8 or has no sentence.
    """
    sentences = list(dict.fromkeys(cell.text for cells in _read_texts(path) for cell in cells))
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
                file.write("\t".join(" ".join(cell.split()) for cell in row) + "\n")
                count += 1
    except FileExistsError as error:
        raise InvalidInput.of_field("output", f'"{path}" already exists') from error
    except OSError as error:
        raise InvalidInput.of_field("output", f'"{path}" cannot be written: {error.strerror}') from error
    return count


def _read_cells(path: Path, columns: Sequence[Column], file_format: FileFormat) -> Iterator[list[_Cell]]:
    """The cells of each row in the order of `columns`. A file that is not .csv or .jsonl is read as TSV.

    Raises:
        InvalidInput: the file is unreadable or empty, or a row is not UTF-8, blank, too long or short.
    """
    chosen = file_format.columns
    if chosen and len(chosen) != len(columns):
        problem = f"{len(chosen)} are given; {len(columns)} are needed: {_names(columns)}"
        raise InvalidInput.of_field("columns", problem)
    with open_data_file(path) as file:
        _refuse_utf_16(file, path)
        if path.suffix.lower() in _JSON_SUFFIXES:
            for place, record in read_json_objects(file, path):
                yield _json_cells(record, columns, chosen, place)
        else:
            yield from _table_cells(file, path, columns, file_format)


def _read_texts(path: Path) -> Iterator[list[_Cell]]:
    """The texts of each row of a file of sentences. Blank lines are skipped.

    One cell is a sentence, two are a sentence and its label, three are two sentences and their label; labels
    are left out. JSON lines have "text" or two sentences.

    Raises:
        InvalidInput: as in `read_scored_pairs`.
    """
    with open_data_file(path) as file:
        _refuse_utf_16(file, path)
        if path.suffix.lower() in _JSON_SUFFIXES:
            for place, record in read_json_objects(file, path):
                has_text = any(key.lower() in TEXT.header_names for key in record)
                cells = _json_cells(record, [TEXT] if has_text else PAIR, (), place)
                yield [cell for cell in cells if cell.text.strip()]
            return
        for row in read_rows(file, is_tsv=_is_tsv(path)):
            _refuse_problem(row, path)
            cells = _numbered_cells(row, path)
            yield [cell for cell in cells[: 2 if len(cells) > 2 else 1] if cell.text.strip()]


def _read_lists(path: Path, file_format: FileFormat) -> Iterator[CandidateList]:
    """The lists of candidates of a file as they are; each triple is a list of two."""
    if path.suffix.lower() not in _JSON_SUFFIXES:
        for cells in _read_cells(path, _TRIPLE, file_format):
            yield _list_of_triple(cells)
        return
    with open_data_file(path) as file:
        _refuse_utf_16(file, path)
        for place, record in read_json_objects(file, path):
            if isinstance(record.get(_POSITIVES), list):
                yield _list_of_record(record, place)
            else:
                yield _list_of_triple(_json_cells(record, _TRIPLE, file_format.columns, place))


def _list_of_triple(cells: Sequence[_Cell]) -> CandidateList:
    query, positive, negative = (
        _sentence(cell, cell_of.name) for cell, cell_of in zip(cells, _TRIPLE, strict=True)
    )
    return CandidateList(query, (positive,), (negative,))


def _list_of_record(record: dict[str, Any], place: str) -> CandidateList:
    texts = {}
    for key, values in (
        ("query", [record.get("query")]),
        *((key, record.get(key, [])) for key in _LIST_KEYS),
    ):
        if not isinstance(values, list) or not all(isinstance(one, str) and one.strip() for one in values):
            raise InvalidInput.of_field(f'{place} key "{key}"', "must hold texts that are not empty")
        texts[key] = tuple(values)
    if not texts[_POSITIVES]:
        raise InvalidInput.of_field(f'{place} key "{_POSITIVES}"', "has no text; a list needs a positive")
    return CandidateList(texts["query"][0], texts[_POSITIVES], texts[_NEGATIVES])


def _sentence(cell: _Cell, name: str) -> str:
    if not cell.text.strip():
        raise InvalidInput.of_field(cell.place, f"{name} is empty")
    return cell.text


def _score(cell: _Cell, score_range: ScoreRange | None) -> float:
    """The score mapped to 0..1; as it is if it has no range."""
    try:
        score = float(cell.text)
    except ValueError as error:
        raise InvalidInput.of_field(cell.place, f'score "{cell.text}" is not a number') from error
    if score_range is None:
        if not math.isfinite(score):
            raise InvalidInput.of_field(cell.place, f"score {cell.text} is not finite")
        return score
    # Also refuses NaN, for which every comparison is false.
    if not score_range.lowest <= score <= score_range.highest:
        expected = f"{score_range.lowest:g}..{score_range.highest:g}"
        raise InvalidInput.of_field(cell.place, f"score {cell.text} is outside {expected}")
    return score_range.normalise(score)


def _refuse_utf_16(file: BinaryIO, path: Path) -> None:
    start = file.read(256)
    file.seek(0)
    if not start:
        raise InvalidInput.of_field(str(path), "is empty; it needs at least one row")
    if start.startswith(_UTF_16_MARKS) or b"\x00" in start:
        raise InvalidInput.of_field(f"{path} line 1", "is UTF-16 or binary; save the file as UTF-8")


def _table_cells(
    file: BinaryIO, path: Path, columns: Sequence[Column], file_format: FileFormat
) -> Iterator[list[_Cell]]:
    rows = read_rows(file, is_tsv=_is_tsv(path))
    first = next(rows)
    _refuse_problem(first, path)
    chosen = file_format.columns
    are_numbers = all(one.isdecimal() and int(one) for one in chosen)
    has_header = (
        _is_header(first.cells, columns) if file_format.has_header is None else file_format.has_header
    )
    if has_header or not are_numbers:
        width = len(first.cells)
        positions = _positions_in_header(first.cells, columns, chosen, f"{path} line {first.line_number}")
        needed = f"the header has {width}"
    else:
        rows = chain([first], rows)
        width = 0 if chosen else len(columns)
        positions = [int(one) - 1 for one in chosen] or list(range(width))
        separator = "TAB" if _is_tsv(path) else "comma"
        needed = f"it needs {max(positions) + 1} columns separated by {separator}: {_names(columns)}"
    for row in rows:
        _refuse_problem(row, path)
        place = f"{path} line {row.line_number}"
        if not "".join(row.cells).strip():
            raise InvalidInput.of_field(place, f"is blank; {needed}")
        if len(row.cells) != width if width else len(row.cells) <= max(positions):
            raise InvalidInput.of_field(place, f"has {len(row.cells)} columns; {needed}")
        cells = _numbered_cells(row, path)
        yield [cells[position] for position in positions]


def _is_header(cells: Sequence[str], columns: Sequence[Column]) -> bool:
    """Whether at least two cells of a first row are header names of `columns` or of the usual ones."""
    known = frozenset[str]().union(*(column.header_names for column in (*columns, *_COLUMNS_OF_TABLES)))
    return sum(_normalised(cell) in known for cell in cells) > 1


def _positions_in_header(
    header: Sequence[str], columns: Sequence[Column], chosen: Sequence[str], place: str
) -> list[int]:
    """The position of each column from 0: the `chosen` names or numbers, else found by name."""
    if chosen:
        return [_chosen_position(header, name, place) for name in chosen]
    names = [_normalised(name) for name in header]
    found: list[int] = []
    for column in columns:
        matches = (at for at, name in enumerate(names) if name in column.header_names and at not in found)
        if (match := next(matches, None)) is not None:
            found.append(match)
    if len(found) == len(columns):
        return found
    if len(header) == len(columns):
        return list(range(len(columns)))
    problem = f"has the columns {', '.join(header)}; use --columns to choose {_names(columns)}"
    raise InvalidInput.of_field(place, problem)


def _chosen_position(header: Sequence[str], name: str, place: str) -> int:
    if name in header:
        return list(header).index(name)
    if name.isdecimal() and 1 <= int(name) <= len(header):
        return int(name) - 1
    raise InvalidInput.of_field(place, f'there is no column "{name}"; the header has {", ".join(header)}')


def _json_cells(
    record: dict[str, Any], columns: Sequence[Column], chosen: Sequence[str], place: str
) -> list[_Cell]:
    keys = list(record)
    cells = []
    for position in _positions_in_header(keys, columns, chosen, place):
        value, cell_place = record[keys[position]], f'{place} key "{keys[position]}"'
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InvalidInput.of_field(cell_place, "must be text or a number")
        cells.append(_Cell(str(value), cell_place))
    return cells


def _numbered_cells(row: Row, path: Path) -> list[_Cell]:
    return [
        _Cell(text, f"{path} line {row.line_number} column {number}")
        for number, text in enumerate(row.cells, start=1)
    ]


def _refuse_problem(row: Row, path: Path) -> None:
    if row.problem:
        raise InvalidInput.of_field(f"{path} line {row.line_number}", row.problem)


def _is_tsv(path: Path) -> bool:
    return path.suffix.lower() != ".csv"


def _names(columns: Sequence[Column]) -> str:
    return ", ".join(column.name for column in columns)


def _normalised(name: str) -> str:
    return _NOT_A_LETTER_OR_DIGIT.sub("", name).lower()
