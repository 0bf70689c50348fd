"""Finds the format of a data file: by an option, by its first bytes and by its name.

with open_data_file("faq.csv") as file:
    layout = detect_layout(file, "faq.csv")  # Layout(Format.CSV, separator=";")
    for row in layout.read_rows(file): ...
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from textmatch.console import one_line, warn
from textmatch.io.csv_reader import Row, read_rows
from textmatch.io.line_reader import START, Position, UnreadableFile, file_name, peek


class Format(StrEnum):
    """File format of records. JSONL stands for an array of objects too."""

    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"


_FORMAT_OF_SUFFIX = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
    ".parquet": Format.PARQUET,
}
_SAMPLE_BYTES = 1 << 18
# Rows of a table from which its separator is found.
_SAMPLE_ROWS = 50
_TAB = "\t"
SEPARATORS = {_TAB: "TAB", ",": "comma", ";": "semicolon", "|": "vertical bar"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_PARQUET_MARK = b"PAR1"
_OBJECT = re.compile(rb'(\[\s*)?\{\s*"')
# First bytes of files that are not read, and what to do with them.
_REFUSED = (
    (b"PK\x03\x04", "is an Excel workbook or another ZIP file; save the sheet as CSV (UTF-8)"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel workbook; save the sheet as CSV (UTF-8)"),
    (b"\x1f\x8b", "is compressed; unpack it with gunzip"),
)


@dataclass(frozen=True)
class Layout:
    """How a file is read. `separator` is that of CSV; `notes` say what a caller may not expect."""

    format: Format
    separator: str = ","
    notes: tuple[str, ...] = ()

    @property
    def is_table(self) -> bool:
        """Whether it has rows of cells."""
        return self.format in (Format.CSV, Format.TSV)

    @property
    def separator_name(self) -> str:
        """The separator of its columns in messages."""
        return SEPARATORS[_TAB if self.format is Format.TSV else self.separator]

    def read_rows(self, file: BinaryIO, start: Position = START) -> Iterator[Row]:
        """The rows of a table from a position on, the header included."""
        return read_rows(file, start, is_tsv=self.format is Format.TSV, separator=self.separator)


def format_of(name: str) -> Format | None:
    """The format of a file by its extension; None if the extension is unknown."""
    return _FORMAT_OF_SUFFIX.get(Path(name).suffix.lower())


def detect_layout(
    file: BinaryIO, name: str, given: Format | None = None, *, least_columns: int = 1
) -> Layout:
    """The layout of a file that was opened, and from which nothing was read.

    A table has the separator of its format, or another one that gives all first rows as many columns. Of a
    pipe only the first bytes are known, so that its format may have to be given.

    Args:
        file: of which nothing is read.
        name: for messages; its extension stands for a format.
        given: the format that a caller gives.
        least_columns: a table has more than one column if it is above 1.

    Raises:
        UnreadableFile: the file is in a format or an encoding that is not read.
    """
    sample = peek(file, _SAMPLE_BYTES)
    for mark, problem in _REFUSED:
        if sample.startswith(mark):
            raise UnreadableFile.of_field(file_name(name), problem)
    if sample.startswith(_PARQUET_MARK):
        return Layout(Format.PARQUET)
    if sample.startswith(_UTF_16_MARKS) or b"\x00" in sample[:256]:
        problem = "is UTF-16 or binary; save the file as UTF-8"
        raise UnreadableFile.of_field(f"{file_name(name)} line 1", problem)
    chosen = given or format_of(name)
    is_json = _OBJECT.match(sample.removeprefix(_BYTE_ORDER_MARK).lstrip()) is not None
    if chosen is Format.JSONL or (is_json and given is None):
        return Layout(Format.JSONL)
    if chosen is Format.PARQUET:
        raise UnreadableFile.of_field(file_name(name), "is not a Parquet file")
    return _table_layout(_whole_lines(sample), chosen or Format.TSV, least_columns)


@cache
def say(name: str | Path, what: str) -> None:
    """Print how a file is read, once: a file may be read several times in a run."""
    warn(f"{file_name(name)}: {one_line(what)}")


def _whole_lines(sample: bytes) -> bytes:
    """A sample without a line at its end that may be cut."""
    return sample if len(sample) < _SAMPLE_BYTES else sample[: sample.rfind(b"\n") + 1]


def _table_layout(sample: bytes, chosen: Format, least_columns: int) -> Layout:
    default = _TAB if chosen is Format.TSV else ","
    # Lines of text have commas and semicolons too.
    others = [one for one in SEPARATORS if one != default] if least_columns > 1 or default == "," else []
    separator = default
    if not _fits(sample, default, least_columns):
        found = (one for one in others if _fits(sample, one, max(least_columns, 2)))
        separator = next(found, default)
    notes = [] if separator == default else [f"columns are separated by {SEPARATORS[separator]}"]
    if separator != _TAB:
        return Layout(Format.CSV, separator, tuple(notes))
    if not _has_quoted_column(_sample_rows(sample, _TAB)):
        return Layout(Format.TSV, notes=tuple(notes))
    return Layout(Format.CSV, _TAB, (*notes, "the quotes around its cells are left out"))


def _sample_rows(sample: bytes, separator: str) -> list[Row]:
    rows = read_rows(io.BytesIO(sample), is_tsv=separator == _TAB, separator=separator)
    return [row for row in islice(rows, _SAMPLE_ROWS) if row.cells]


def _fits(sample: bytes, separator: str, least_columns: int) -> bool:
    """Whether a separator gives all first rows as many columns, and enough."""
    widths = {len(row.cells) for row in _sample_rows(sample, separator) if not row.problem}
    return len(widths) == 1 and widths.pop() >= least_columns


def _has_quoted_column(rows: Sequence[Row]) -> bool:
    """Whether all cells of a column of a TSV file are in quotes, as spreadsheets and pandas write them."""
    columns = zip(*(row.cells for row in rows), strict=False) if len(rows) > 1 else ()
    return any(all(map(_is_quoted, column)) for column in columns)


def _is_quoted(cell: str) -> bool:
    is_between_quotes = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return is_between_quotes and '"' not in cell[1:-1].replace('""', "")
