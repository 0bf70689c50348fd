"""Rows of CSV and TSV files, each with its position and its problem, if it cannot be read."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from textmatch.io.line_reader import START, Line, Position, UnreadableLine, read_lines


@dataclass(frozen=True)
class Row:
    """One row: no cells if the line is blank; `problem` says why it cannot be read, "" if it can."""

    line_number: int
    content: bytes
    cells: list[str]
    problem: str
    end: Position


def read_rows(
    file: BinaryIO, start: Position = START, *, is_tsv: bool, separator: str = ","
) -> Iterator[Row]:
    """All rows from a position on, the header included.

    CSV follows RFC 4180, with another separator if one is given. In TSV quotes are ordinary characters, as in
    IANA's text/tab-separated-values.
    """
    taken: list[Line] = []

    def feed() -> Iterator[str]:
        for line in read_lines(file, start):
            taken.append(line)
            # `_problem` reports bytes that are not UTF-8, with the line number.
            yield line.content.decode(errors="replace")

    reader = (
        csv.reader(feed(), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        if is_tsv
        else csv.reader(feed(), delimiter=separator, strict=True)
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
        content = b"".join(line.content for line in taken)
        yield Row(taken[0].number, content, cells, _problem(taken) or problem, taken[-1].end)


def _problem(lines: list[Line]) -> str:
    for line in lines:
        try:
            line.text()
        except UnreadableLine as error:
            return str(error)
    return ""
