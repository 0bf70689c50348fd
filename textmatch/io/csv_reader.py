"""Rows of CSV and TSV files, each with its position and its problem, if it cannot be read.

A cell may have any size up to that of a row. After a quote that is not closed, rows cannot be told from parts
of a cell: the line where the quote begins is reported, and the rest of the file is not read.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from textmatch.io import line_reader
from textmatch.io.line_reader import START, Line, Position, UnreadableLine, read_lines


@dataclass(frozen=True)
class Row:
    """One row: no cells if the line is blank; `problem` says why it cannot be read, "" if it can."""

    line_number: int
    content: bytes
    cells: list[str]
    problem: str
    end: Position

    @property
    def is_blank(self) -> bool:
        """Whether it is empty, or has separators only, as spreadsheets leave them."""
        return not "".join(self.cells).strip()


def read_rows(
    file: BinaryIO, start: Position = START, *, is_tsv: bool, separator: str = ","
) -> Iterator[Row]:
    """All rows from a position on, the header included.

    CSV follows RFC 4180, with another separator if one is given. In TSV quotes are ordinary characters, as in
    IANA's text/tab-separated-values.
    """
    # A limit of the whole process, which is no limit here: `_Lines` limits the size of a row.
    csv.field_size_limit(2 * line_reader.MAX_LINE_BYTES)
    lines = _Lines(read_lines(file, start))
    reader = (
        csv.reader(lines.texts(), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        if is_tsv
        else csv.reader(lines.texts(), delimiter=separator, strict=True)
    )
    while True:
        lines.begin_row()
        cells, problem, lost = list[str](), "", None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"is not {'TSV' if is_tsv else 'CSV'}: {error}"
            lost = None if is_tsv else lines.find_lost_quote(separator.encode(), error)
            if lost is not None:
                problem = f"is not CSV: {lines.problem_of(lost, error)}; the rest of the file is not read"
        taken = lines.taken
        if lost is not None:
            yield Row(lost.number, lost.content, [], problem, taken[-1].end)
            return
        content = b"".join(line.content for line in taken)
        yield Row(taken[0].number, content, cells, _problem(taken) or problem, taken[-1].end)


class _Lines:
    """The lines of a file: those that csv took for the current row, and those that were read in advance."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._ahead: deque[Line] = deque()
        self._row_bytes = 0
        self._is_too_long = False
        self.taken: list[Line] = []

    def begin_row(self) -> None:
        """The next line is the first of a row."""
        self.taken.clear()
        self._row_bytes = 0

    def texts(self) -> Iterator[str]:
        """The text of each line; they end where a row becomes too long."""
        while (line := self._ahead.popleft() if self._ahead else next(self._lines, None)) is not None:
            self.taken.append(line)
            self._row_bytes += len(line.content)
            self._is_too_long = self._row_bytes > line_reader.MAX_LINE_BYTES
            if self._is_too_long:
                return
            # `_problem` reports bytes that are not UTF-8, with the line number.
            yield line.content.decode(errors="replace")

    def find_lost_quote(self, separator: bytes, error: csv.Error) -> Line | None:
        """The line where the quote begins that makes the row invalid; None if only this line is.

        A row of one line with an even number of quotes has a stray one: `1,"say "hi" again"`. It ends there,
        unless the next quote of the file closes a cell.
        """
        first, *others = self.taken
        if not others and first.content.count(b'"') % 2 == 0:
            return first if b'"' in first.content and self._is_within_cell(separator) else None
        begin, is_open = first, False
        # In the last line the quote ends, unless the file ends first.
        for line in self.taken if _is_never_closed(error) else self.taken[:-1]:
            count = line.content.replace(b'""', b"").count(b'"')
            was_open, is_open = is_open, is_open ^ (count % 2 == 1)
            if is_open and (count > 1 or not was_open):
                begin = line
        return begin

    def problem_of(self, lost: Line, error: csv.Error) -> str:
        """What is wrong with the quote that begins in a line."""
        if self._is_too_long:
            limit = f"{line_reader.MAX_LINE_BYTES:,}"
            return f"the quote that begins in this line is not closed within {limit} bytes"
        if _is_never_closed(error):
            return "the quote that begins in this line is never closed"
        last = self.taken[-1].number
        end = "" if last == lost.number else f" and ends in line {last}"
        return f"text follows the quote that begins in this line{end}"

    def _is_within_cell(self, separator: bytes) -> bool:
        """Whether the next quote of the file closes a cell. Reads in advance up to the size of a row."""
        size_bytes = position = 0
        while size_bytes <= line_reader.MAX_LINE_BYTES:
            if position == len(self._ahead):
                line = next(self._lines, None)
                if line is None:
                    return False
                self._ahead.append(line)
            content = self._ahead[position].content
            if (at := content.find(b'"')) >= 0:
                is_at_start = at == 0 or content[at - 1 : at] == separator
                is_before_end = content[at + 1 : at + 2] in (separator, b"\r", b"\n", b"")
                is_odd = content.count(b'"') % 2 == 1
                return not is_at_start or (is_before_end and is_odd)
            size_bytes += len(content)
            position += 1
        return False


def _is_never_closed(error: csv.Error) -> bool:
    return "unexpected end of data" in str(error)


def _problem(lines: list[Line]) -> str:
    for line in lines:
        try:
            line.text()
        except UnreadableLine as error:
            return str(error)
    return ""
