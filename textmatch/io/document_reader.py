"""Documents in JSON lines, CSV and TSV files: one record each, with its line and its problem, if any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from textmatch.errors import InvalidInput
from textmatch.io.column_types import ALL_COLUMNS, ColumnGuess, ColumnType, convert
from textmatch.io.csv_reader import Row, read_rows
from textmatch.io.line_reader import START, STDIN, Position, UnreadableFile, UnreadableLine, read_lines

_REQUIRED_COLUMNS = ("id", "text")
_VERSION_COLUMN = "version"
_NOT_ATTRIBUTES = (*_REQUIRED_COLUMNS, _VERSION_COLUMN)

Types = Mapping[str, ColumnType]


class Format(StrEnum):
    """File format of documents."""

    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"


_FORMAT_OF_SUFFIX = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
}


@dataclass(frozen=True)
class Record:
    """One document of a file: its fields, or the `problem` that it cannot be read for."""

    line_number: int
    content: bytes
    end: Position
    fields: Any = None
    problem: str = ""


def format_of(name: str) -> Format | None:
    """The format of a file by its extension; JSON lines for stdin; None if the extension is unknown."""
    return Format.JSONL if name == STDIN else _FORMAT_OF_SUFFIX.get(Path(name).suffix.lower())


def read_records(
    file: BinaryIO, file_format: Format, name: str, start: Position = START, types: Types | None = None
) -> Iterator[Record]:
    """All documents of a file from a position on; blank lines are skipped. `name` is used in messages.

    Args:
        types: of the columns of CSV and TSV; those without a type are text.

    Raises:
        UnreadableFile: a CSV or TSV file has no usable header.
    """
    if file_format is Format.JSONL:
        return _read_json_lines(file, start)
    return _read_table(file, name, start, types or {}, is_tsv=file_format is Format.TSV)


def check_types(types: Types) -> None:
    """Check the types that a user gives.

    Raises:
        InvalidInput: a type is given for a column that is not an attribute.
    """
    for column in _NOT_ATTRIBUTES:
        if column in types:
            raise InvalidInput.of_field("types", f"the column {column} is not an attribute and has no type")


def infer_types(file: BinaryIO, file_format: Format, name: str, given: Types) -> tuple[Types, str]:
    """The types of the columns of a CSV or TSV file, and a line about them for people; "" if there is none.

    All rows are read, so that no later row contradicts. A pipe cannot be read twice and is not read: its
    columns are text.

    Args:
        given: types that are known; `ALL_COLUMNS` stands for the columns that it does not name.

    Raises:
        UnreadableFile: the header cannot be used, or lacks a column that has a type.
    """
    if ALL_COLUMNS in given:
        return given, ""
    if not file.seekable():
        return given, ""
    rows = read_rows(file, is_tsv=file_format is Format.TSV)
    header = _header(next(rows, None), name, given)
    guesses = {
        position: ColumnGuess()
        for position, column in enumerate(header)
        if column not in _NOT_ATTRIBUTES and column not in given
    }
    for row in rows:
        if not row.problem and len(row.cells) == len(header):
            for position, guess in guesses.items():
                guess.add(row.cells[position], row.line_number)
    file.seek(0)
    inferred = {header[position]: guess.column_type for position, guess in guesses.items()}
    notes = [_note(header[position], guess) for position, guess in guesses.items()]
    return {**inferred, **given}, ", ".join(filter(None, notes))


def _note(column: str, guess: ColumnGuess) -> str:
    if guess.column_type is not ColumnType.STRING:
        return f"{column} is {guess.column_type}"
    if guess.misfit is None:
        return ""
    line_number, cell = guess.misfit
    return f"{column} is string because of {cell!r:.40} in line {line_number}"


def _read_json_lines(file: BinaryIO, start: Position) -> Iterator[Record]:
    for line in read_lines(file, start):
        if not line.content.strip():
            continue
        try:
            yield Record(line.number, line.content, line.end, line.json())
        except UnreadableLine as error:
            yield Record(line.number, line.content, line.end, problem=str(error))


def _read_table(
    file: BinaryIO, name: str, start: Position, types: Types, *, is_tsv: bool
) -> Iterator[Record]:
    rows = read_rows(file, is_tsv=is_tsv)
    header = _header(next(rows, None), name, types)
    if start != START:
        rows = read_rows(file, start, is_tsv=is_tsv)
    for row in rows:
        if row.problem or row.cells:
            yield _record(row, header, types)


def _header(row: Row | None, name: str, types: Types) -> list[str]:
    if row is None:
        raise UnreadableFile.of_field(name, "is empty; it must have a header with the columns id and text")
    columns = [column.strip() for column in row.cells]
    problem = row.problem
    needed = [*_REQUIRED_COLUMNS, *(column for column in types if column != ALL_COLUMNS)]
    if missing := [column for column in needed if column not in columns]:
        problem = problem or f"the header has no {' and no '.join(missing)}; it has {', '.join(columns)}"
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        problem = problem or f"the header has {', '.join(repeated)} more than once"
    if problem:
        raise UnreadableFile.of_field(f"{name} line {row.line_number}", problem)
    return columns


def _record(row: Row, header: list[str], types: Types) -> Record:
    problem = row.problem
    if not problem and len(row.cells) != len(header):
        problem = f"has {len(row.cells)} fields; the header has {len(header)}"
    if problem:
        return Record(row.line_number, row.content, row.end, problem=problem)
    cells = dict(zip(header, row.cells, strict=True))
    default = types.get(ALL_COLUMNS, ColumnType.STRING)
    try:
        version = _converted(_VERSION_COLUMN, cells.pop(_VERSION_COLUMN, ""), ColumnType.INTEGER)
        document = {column: cells.pop(column) for column in _REQUIRED_COLUMNS}
        attributes = {
            column: _converted(column, cell, types.get(column, default))
            for column, cell in cells.items()
            if cell
        }
    except ValueError as error:
        return Record(row.line_number, row.content, row.end, problem=str(error))
    fields = {**document, "attributes": attributes, "version": version}
    return Record(row.line_number, row.content, row.end, fields)


def _converted(column: str, cell: str, column_type: ColumnType) -> Any:
    """The value of a cell; None if it is empty."""
    try:
        return convert(cell, column_type) if cell else None
    except ValueError as error:
        raise ValueError(f"{column} {error}, not {cell!r:.80}") from None
