"""Documents in JSON lines, CSV and TSV files: one record each, with its line and its problem, if any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from textmatch.io.csv_reader import Row, read_rows
from textmatch.io.line_reader import START, STDIN, Position, UnreadableFile, UnreadableLine, read_lines

_REQUIRED_COLUMNS = ("id", "text")
_VERSION_COLUMN = "version"


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


def read_records(file: BinaryIO, file_format: Format, name: str, start: Position = START) -> Iterator[Record]:
    """All documents of a file from a position on; blank lines are skipped. `name` is used in messages.

    Raises:
        UnreadableFile: a CSV or TSV file has no usable header.
    """
    if file_format is Format.JSONL:
        return _read_json_lines(file, start)
    return _read_table(file, name, start, is_tsv=file_format is Format.TSV)


def _read_json_lines(file: BinaryIO, start: Position) -> Iterator[Record]:
    for line in read_lines(file, start):
        if not line.content.strip():
            continue
        try:
            yield Record(line.number, line.content, line.end, line.json())
        except UnreadableLine as error:
            yield Record(line.number, line.content, line.end, problem=str(error))


def _read_table(file: BinaryIO, name: str, start: Position, *, is_tsv: bool) -> Iterator[Record]:
    rows = read_rows(file, is_tsv=is_tsv)
    header = _header(next(rows, None), name)
    if start != START:
        rows = read_rows(file, start, is_tsv=is_tsv)
    for row in rows:
        if row.problem or row.cells:
            yield _record(row, header)


def _header(row: Row | None, name: str) -> list[str]:
    if row is None:
        raise UnreadableFile.of_field(name, "is empty; it must have a header with the columns id and text")
    columns = [column.strip() for column in row.cells]
    problem = row.problem
    if missing := [column for column in _REQUIRED_COLUMNS if column not in columns]:
        problem = problem or f"the header has no {' and no '.join(missing)}; it has {', '.join(columns)}"
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        problem = problem or f"the header has {', '.join(repeated)} more than once"
    if problem:
        raise UnreadableFile.of_field(f"{name} line {row.line_number}", problem)
    return columns


def _record(row: Row, header: list[str]) -> Record:
    problem = row.problem
    if not problem and len(row.cells) != len(header):
        problem = f"has {len(row.cells)} fields; the header has {len(header)}"
    fields: dict[str, Any] = dict(zip(header, row.cells, strict=False))
    version = fields.pop(_VERSION_COLUMN, "")
    if not problem and version:
        try:
            version = int(version)
        except ValueError:
            problem = f"version must be a whole number, not {version!r}"
    if problem:
        return Record(row.line_number, row.content, row.end, problem=problem)
    document = {column: fields.pop(column) for column in _REQUIRED_COLUMNS}
    attributes = {column: cell for column, cell in fields.items() if cell}
    return Record(
        row.line_number,
        row.content,
        row.end,
        {**document, "attributes": attributes, "version": version or None},
    )
