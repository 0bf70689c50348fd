"""Rows of TSV, CSV and JSON-lines files: the cells that a recipe reads, each with its place for messages.

Which column of a data file holds what: by the header, by the caller's word, or by their order.

Data files as the project writes them: columns with TAB between, one row a line, UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from textmatch.errors import InvalidInput
from textmatch.io.csv_reader import Row, read_rows
from textmatch.io.line_reader import open_data_file, read_json_objects

_NOT_A_LETTER_OR_DIGIT = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Column:
    """What a recipe reads, and the names under which files are known to hold it."""

    name: str
    known_names: frozenset[str]


def _column(name: str, *known_names: str) -> Column:
    return Column(name, frozenset(known_names))


# Names are compared without case, spaces and punctuation: "Sentence_1" is "sentence1".
SENTENCE_1 = _column(
    "sentence 1", "sentence1", "text1", "question1", "premise", "query", "sentencea", "texta", "anchor"
)
SENTENCE_2 = _column(
    "sentence 2",
    "sentence2",
    "text2",
    "question2",
    "hypothesis",
    "document",
    "sentenceb",
    "textb",
    "positive",
)
LABEL = _column("label", "label", "goldlabel", "class", "isduplicate", "score", "similarity")
SCORE = _column("score", "score", "similarity", "label", "isduplicate")
ANCHOR = _column("anchor", "anchor", "query", "question", "sentence1", "premise")
POSITIVE = _column("positive", "positive", "answer", "document", "sentence2", "entailment")
NEGATIVE = _column("negative", "negative", "hardnegative", "sentence3", "contradiction")
TEXT = _column("text", "text", "sentence", "content")

PAIR = (SENTENCE_1, SENTENCE_2)


@dataclass(frozen=True)
class FileForm:
    """What a caller says of files whose form cannot be told from them.

    `has_header` None: a first row that names columns is a header. `columns` are the names, or the numbers
    from 1, of the columns to read, in the recipe's order; empty: they are found.
    """

    has_header: bool | None = None
    columns: tuple[str, ...] = ()


def is_header(cells: Sequence[str]) -> bool:
    """Whether a first row names columns: at least two of its cells are names that files are known to use."""
    known = frozenset[str]().union(
        *(one.known_names for one in (*PAIR, LABEL, SCORE, ANCHOR, POSITIVE, NEGATIVE))
    )
    return sum(_normal(cell) in known for cell in cells) > 1


def positions_in_header(
    header: Sequence[str], wanted: Sequence[Column], chosen: Sequence[str], place: str
) -> list[int]:
    """Where each wanted column is, from 0.

    Args:
        header: the names of a file's columns.
        wanted: the columns to find.
        chosen: names or numbers of the columns to take for them; empty to find them by their names.
        place: of the header, for messages.

    Raises:
        InvalidInput: one is not there.
    """
    if chosen:
        return [_chosen_position(header, name, place) for name in chosen]
    found = _by_name(header, wanted)
    if found is None and len(header) == len(wanted):
        return list(range(len(wanted)))
    if found is None:
        names = ", ".join(column.name for column in wanted)
        problem = f"names the columns {', '.join(header)}; say with --columns which of them are {names}"
        raise InvalidInput.of_field(place, problem)
    return found


def positions_by_number(chosen: Sequence[str]) -> list[int] | None:
    """Where the chosen columns are, from 0, if all are given by number."""
    return [int(one) - 1 for one in chosen] if all(one.isdecimal() and int(one) for one in chosen) else None


def _by_name(header: Sequence[str], wanted: Sequence[Column]) -> list[int] | None:
    names = [_normal(name) for name in header]
    found: list[int] = []
    for column in wanted:
        match = next(
            (at for at, name in enumerate(names) if name in column.known_names and at not in found), None
        )
        if match is None:
            return None
        found.append(match)
    return found


def _chosen_position(header: Sequence[str], name: str, place: str) -> int:
    if name in header:
        return list(header).index(name)
    if name.isdecimal() and 1 <= int(name) <= len(header):
        return int(name) - 1
    raise InvalidInput.of_field(place, f'there is no column "{name}"; the header names {", ".join(header)}')


def _normal(name: str) -> str:
    return _NOT_A_LETTER_OR_DIGIT.sub("", name).lower()


_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Cell:
    """One cell; `place` names file, line and column."""

    text: str
    place: str


def read_cells(path: Path, columns: Sequence[Column], form: FileForm) -> Iterator[list[Cell]]:
    """The cells of each row in the order of `columns`; a file that is not .csv or .jsonl is TSV.

    Raises:
        InvalidInput: the file is unreadable or empty, or a row is not UTF-8, blank, too long or short.
    """
    if form.columns and len(form.columns) != len(columns):
        names = ", ".join(column.name for column in columns)
        raise InvalidInput.of_field(
            "columns", f"{len(form.columns)} are given; {len(columns)} are read: {names}"
        )
    with open_data_file(path) as file:
        _refuse_utf_16(file, path)
        if path.suffix.lower() in _JSON_SUFFIXES:
            yield from _json_cells(file, path, columns, form)
        else:
            yield from _table_cells(file, path, columns, form)


def read_texts(path: Path) -> Iterator[list[Cell]]:
    """The texts of each row of a file of sentences, in which blank lines do not count.

    One cell is a sentence, two are a sentence and its label, three are two sentences and their label; labels
    are left out. JSON lines have "text" or two sentences.

    Raises:
        InvalidInput: as in `read_cells`.
    """
    with open_data_file(path) as file:
        _refuse_utf_16(file, path)
        if path.suffix.lower() in _JSON_SUFFIXES:
            yield from _json_texts(file, path)
            return
        for row in read_rows(file, is_tsv=path.suffix.lower() != ".csv"):
            _refuse_problem(row, path)
            cells = _numbered_cells(row, path)
            # What is no table of sentences is read as plain text, TAB or not.
            yield [cell for cell in cells[: 2 if len(cells) > 2 else 1] if cell.text.strip()]


def _refuse_utf_16(file: BinaryIO, path: Path) -> None:
    start = file.read(256)
    file.seek(0)
    if not start:
        raise InvalidInput.of_field(str(path), "is empty; it needs at least one row")
    if start.startswith(_UTF_16_MARKS) or b"\x00" in start:
        raise InvalidInput.of_field(f"{path} line 1", "is UTF-16 or binary; save the file as UTF-8")


def _table_cells(
    file: BinaryIO, path: Path, columns: Sequence[Column], form: FileForm
) -> Iterator[list[Cell]]:
    is_tsv = path.suffix.lower() != ".csv"
    rows = read_rows(file, is_tsv=is_tsv)
    first = next(rows)
    _refuse_problem(first, path)
    place = f"{path} line {first.line_number}"
    numbers = positions_by_number(form.columns)
    chosen_by_name = bool(form.columns) and numbers is None
    has_header = is_header(first.cells) if form.has_header is None else form.has_header
    if has_header or chosen_by_name:
        positions, width = positions_in_header(first.cells, columns, form.columns, place), len(first.cells)
        needed = f"the header has {width}"
    else:
        rows = chain([first], rows)
        positions = numbers or list(range(len(columns)))
        width = len(columns) if not form.columns else 0
        separator = "TAB" if is_tsv else "comma"
        names = ", ".join(column.name for column in columns)
        needed = f"it needs {max(positions) + 1} columns separated by {separator}: {names}"
    for row in rows:
        _refuse_problem(row, path)
        place = f"{path} line {row.line_number}"
        if not "".join(row.cells).strip():
            raise InvalidInput.of_field(place, f"is blank; {needed}")
        if len(row.cells) != width if width else len(row.cells) <= max(positions):
            raise InvalidInput.of_field(place, f"has {len(row.cells)} columns; {needed}")
        cells = _numbered_cells(row, path)
        yield [cells[position] for position in positions]


def _json_cells(
    file: BinaryIO, path: Path, columns: Sequence[Column], form: FileForm
) -> Iterator[list[Cell]]:
    for place, record in read_json_objects(file, path):
        keys = list(record)
        yield [
            _json_cell(record[keys[position]], keys[position], place)
            for position in positions_in_header(keys, columns, form.columns, place)
        ]


def _json_texts(file: BinaryIO, path: Path) -> Iterator[list[Cell]]:
    for place, record in read_json_objects(file, path):
        keys = list(record)
        names = {key.lower() for key in keys}
        wanted = [TEXT] if names & TEXT.known_names else PAIR
        positions = positions_in_header(keys, wanted, (), place)
        cells = [_json_cell(record[keys[position]], keys[position], place) for position in positions]
        yield [cell for cell in cells if cell.text.strip()]


def _json_cell(value: Any, key: str, place: str) -> Cell:
    place = f'{place} key "{key}"'
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidInput.of_field(place, "is neither text nor a number")
    return Cell(str(value), place)


def _numbered_cells(row: Row, path: Path) -> list[Cell]:
    return [
        Cell(text, f"{path} line {row.line_number} column {number}")
        for number, text in enumerate(row.cells, start=1)
    ]


def _refuse_problem(row: Row, path: Path) -> None:
    if row.problem:
        raise InvalidInput.of_field(f"{path} line {row.line_number}", row.problem)


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> int:
    """Write a new file and return how many rows it has; line ends and TABs within a text become spaces.

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
        raise InvalidInput.of_field("output", f'"{path}" exists already') from error
    except OSError as error:
        raise InvalidInput.of_field("output", f'"{path}" cannot be written: {error.strerror}') from error
    return count
