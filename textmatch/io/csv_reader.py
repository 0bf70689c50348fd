"""Rows of CSV and TSV files, each with its position and its problem, if it cannot be read."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from textmatch.io.line_reader import START, Line, Position, UnreadableLine, read_lines

# How the error of csv begins for a cell of more than `csv.field_size_limit()` characters.
_TOO_LARGE = "field larger than field limit"


@dataclass(frozen=True)
class Row:
    """One row: no cells if the line is blank; `problem` says why it cannot be read, "" if it can."""

    line_number: int
    content: bytes
    cells: list[str]
    problem: str
    end: Position


def read_rows(file: BinaryIO, start: Position = START, *, is_tsv: bool) -> Iterator[Row]:
    """All rows from a position on, the header included.

    CSV follows RFC 4180. In TSV quotes are ordinary characters, as in IANA's text/tab-separated-values.
    """
    taken: list[Line] = []

    def feed() -> Iterator[str]:
        for line in read_lines(file, start):
            taken.append(line)
            # `_problem` reports bytes that are not UTF-8, with the line number.
            yield line.content.decode(errors="replace")

    source = feed()
    reader = (
        csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        if is_tsv
        else csv.reader(source, strict=True)
    )
    while True:
        taken.clear()
        cells, problem = list[str](), ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"is not {'TSV' if is_tsv else 'CSV'}: {error}"
            if _TOO_LARGE in str(error):
                problem = _skip_large_cell(source, taken, is_tsv=is_tsv)
        content = b"".join(line.content for line in taken)
        yield Row(taken[0].number, content, cells, _problem(taken) or problem, taken[-1].end)


def _skip_large_cell(source: Iterator[str], taken: list[Line], *, is_tsv: bool) -> str:
    """Read the rest of a row that csv gave up on, so that no part of a cell is taken for a row.

    The number of quotes in a whole row of CSV is even. The contents of the skipped lines are not kept.
    """
    is_open = not is_tsv and b"".join(line.content for line in taken).count(b'"') % 2 == 1
    while is_open and (text := next(source, None)) is not None:
        is_open = text.count('"') % 2 == 0
        taken[-1] = replace(taken[-1], content=b"")
        if len(taken) > 1 and not taken[-2].content:
            del taken[-2]
    problem = f"has a cell of more than {csv.field_size_limit():,} characters"
    if is_open:
        return f"{problem}: its quote is never closed"
    first, last = taken[0].number, taken[-1].number
    return problem if first == last else f"{problem}, up to line {last}"


def _problem(lines: list[Line]) -> str:
    for line in lines:
        try:
            line.text()
        except UnreadableLine as error:
            return str(error)
    return ""
