"""Lines of a file or of stdin, by number, in constant memory whatever the file holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from textmatch.errors import InvalidInput, TextMatchError

STDIN = "-"
MAX_LINE_BYTES = 16 * 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class CommandFailed(TextMatchError):
    """A command cannot do what it was asked to; the message says why."""


class UnreadableLine(Exception):
    """What is wrong with a line; the message goes behind the name of the file and the line's number."""


@dataclass(frozen=True)
class Position:
    """A place between two lines: so many bytes and lines are before it."""

    offset_bytes: int = 0
    line_number: int = 0


START = Position()


@dataclass(frozen=True)
class Line:
    """A line with its end; `content` is cut if `is_too_long`. `end` is where the next line begins."""

    number: int
    content: bytes
    end: Position
    is_too_long: bool = False

    def text(self) -> str:
        """The line without its end.

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
            ) from error

    def json(self) -> Any:
        """What the line says.

        Raises:
            UnreadableLine: as for `text`, or it is not JSON, in which there is no NaN and no infinity.
        """
        text = self.text()
        try:
            return json.loads(text, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise UnreadableLine(f"is not JSON: {error.msg} at column {error.colno}") from error
        except ValueError as error:
            raise UnreadableLine(f"is not JSON: {error}") from error
        except RecursionError:
            raise UnreadableLine("is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """The file, or stdin if it is called "-".

    Raises:
        CommandFailed: it cannot be opened.
    """
    if name == STDIN:
        yield sys.stdin.buffer
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise CommandFailed(f"cannot read {name}: {error.strerror}") from error
        yield file


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


def open_data_file(path: Path) -> BinaryIO:
    """A file for reading bytes.

    Raises:
        InvalidInput: it cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidInput.of_field(str(path), f"cannot be read: {error.strerror}") from error


def read_json_objects(file: BinaryIO, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object of each line of JSON lines, behind its place for messages.

    Raises:
        InvalidInput: a line cannot be read or is no object; the message names file and line.
    """
    for line in read_lines(file):
        place = f"{path} line {line.number}"
        try:
            record = line.json()
        except UnreadableLine as error:
            raise InvalidInput.of_field(place, str(error)) from error
        if not isinstance(record, dict):
            raise InvalidInput.of_field(place, "is not a JSON object")
        yield place, record


def file_name(name: str) -> str:
    """How a file is called in messages."""
    return "stdin" if name == STDIN else name


def _skip_rest_of_line(file: BinaryIO) -> int:
    """How many bytes were skipped."""
    skipped = 0
    while rest := file.readline(MAX_LINE_BYTES):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped
