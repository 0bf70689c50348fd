"""Lines of a file or of stdin, with their numbers. Memory use does not depend on the file.

with open_data_file("docs.jsonl") as file:
    for line in read_lines(file):
        line.number, line.json()
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from textmatch.errors import InvalidInput

STDIN = "-"
MAX_LINE_BYTES = 16 * 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The characters of GB 2312, in GBK.
_COMMON_CHINESE = re.compile(rb"[\xb0-\xf7][\xa1-\xfe]")
_COMMON_SHARE_OF_GBK = 0.5


class UnreadableFile(InvalidInput):
    """A data file cannot be used. The message names the file, and the invalid line if there is one."""


class UnreadableLine(Exception):
    """A line cannot be used. The message says why; the reader of the file adds its name and line number."""


@dataclass(frozen=True)
class Position:
    """A position between two lines: the number of bytes and lines before it."""

    offset_bytes: int = 0
    line_number: int = 0


START = Position()


@dataclass(frozen=True)
class Record:
    """One record of a file: its fields, or the `problem` that it cannot be read for."""

    line_number: int
    content: bytes
    end: Position
    fields: Any = None
    problem: str = ""


@dataclass(frozen=True)
class Line:
    """A line with its line end; `content` is cut if `is_too_long`. `end` is where the next line begins."""

    number: int
    content: bytes
    end: Position
    is_too_long: bool = False

    def text(self) -> str:
        """The line without its line end.

        Raises:
            UnreadableLine: it is too long or not UTF-8.
        """
        if self.is_too_long:
            raise UnreadableLine(f"is longer than {MAX_LINE_BYTES:,} bytes")
        try:
            return self.content.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise UnreadableLine(
                f"is not UTF-8: byte 0x{self.content[error.start]:02x} at byte {error.start + 1} of the line"
                f"{gbk_hint(self.content)}"
            ) from error

    def json(self) -> Any:
        """The JSON value on the line.

        Raises:
            UnreadableLine: as for `text`, or it is not JSON. NaN and infinity are not JSON.
        """
        text = self.text()
        try:
            return json.loads(text, parse_constant=refuse_constant)
        except json.JSONDecodeError as error:
            raise UnreadableLine(f"is not JSON: {error.msg} at column {error.colno}") from error
        except ValueError as error:
            raise UnreadableLine(f"is not JSON: {error}") from error
        except RecursionError:
            raise UnreadableLine("is nested too deeply") from None


@contextmanager
def open_data_file(name: str | Path) -> Iterator[BinaryIO]:
    """A file opened for reading bytes, or stdin for "-".

    Raises:
        UnreadableFile: it cannot be opened.
    """
    if str(name) == STDIN:
        yield sys.stdin.buffer
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise UnreadableFile.of_field(str(name), f"cannot be read: {error.strerror}") from error
        yield file


def peek(file: BinaryIO, size_bytes: int) -> bytes:
    """The next bytes of a file, which stay unread. Of a pipe, only those that its buffer has."""
    if file.seekable():
        position = file.tell()
        start = file.read(size_bytes)
        file.seek(position)
        return start
    return file.peek(size_bytes)[:size_bytes] if isinstance(file, io.BufferedReader) else b""


def file_name(name: str | Path) -> str:
    """The name of a file in messages."""
    return "stdin" if str(name) == STDIN else str(name)


def read_lines(file: BinaryIO, start: Position = START) -> Iterator[Line]:
    """All lines from a position on, without a byte order mark."""
    if start != START:
        file.seek(start.offset_bytes)
    offset_bytes, number = start.offset_bytes, start.line_number
    while content := file.readline(MAX_LINE_BYTES):
        number += 1
        offset_bytes += len(content)
        is_too_long = len(content) == MAX_LINE_BYTES and not content.endswith(b"\n")
        if is_too_long:
            offset_bytes += _skip_rest_of_line(file)
        if number == 1:
            content = content.removeprefix(_BYTE_ORDER_MARK)
        yield Line(number, content, Position(offset_bytes, number), is_too_long)


def read_texts_of_lines(name: str) -> Iterator[tuple[str, str]]:
    """Pairs of the place of each line, for messages, and its text; from a file or stdin.

    Raises:
        UnreadableFile: the file cannot be opened, or a line is too long or not UTF-8.
    """
    with open_data_file(name) as file:
        for line in read_lines(file):
            place = f"{file_name(name)} line {line.number}"
            try:
                text = line.text()
            except UnreadableLine as error:
                raise UnreadableFile.of_field(place, str(error)) from error
            yield place, text


def gbk_hint(content: bytes) -> str:
    """How to convert a line that is Chinese text in GBK; "" if it is not."""
    try:
        text = content.decode("gb18030")
    except UnicodeDecodeError:
        return ""
    foreign = sum(not character.isascii() for character in text)
    # In other encodings a byte above 0xa0 is rarely followed by another one.
    if len(_COMMON_CHINESE.findall(content)) < foreign * _COMMON_SHARE_OF_GBK:
        return ""
    return "; it seems to be GBK: convert it with iconv -f GB18030 -t UTF-8"


def refuse_constant(name: str) -> NoReturn:
    """Raise ValueError: NaN and infinity are not JSON."""
    raise ValueError(f"{name} is not a number")


def _skip_rest_of_line(file: BinaryIO) -> int:
    """Returns how many bytes were skipped."""
    skipped = 0
    while rest := file.readline(MAX_LINE_BYTES):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped
