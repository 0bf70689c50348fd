"""Rows of TSV, CSV and JSON-lines files: the cells that a recipe reads, each with its place for messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from textmatch.cli.lines import open_data_file, read_json_objects
from textmatch.cli.tables import Row, read_rows
from textmatch.errors import InvalidInput
from training.columns import (
    PAIR,
    TEXT,
    Column,
    FileForm,
    is_header,
    positions_by_number,
    positions_in_header,
)

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
