"""Records of Parquet and JSON files: objects, one per line, in an array, or in an array in an object.

    {"id": "a"}        [{"id": "a"},        {"version": 2, "data": [
    {"id": "b"}         {"id": "b"}]            {"id": "a"}, {"id": "b"}]}

Memory use does not depend on the file. A bad line is reported and the next one is read; behind a syntax error
in an array nothing is read.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from textmatch.io import line_reader
from textmatch.io.file_format import Format
from textmatch.io.line_reader import (
    START,
    Position,
    Record,
    UnreadableFile,
    UnreadableLine,
    file_name,
    gbk_hint,
    peek,
    read_lines,
    refuse_constant,
)

_CHUNK_BYTES = 1 << 18
_PEEK_BYTES = 256
# An array, or an object that does not end on its first line.
_ONE_VALUE = re.compile(r"\s*(\[|\{\s*\n)")
_SPACE = re.compile(r"\s*")
_ARRAY_OF_OBJECTS = re.compile(r"\[\s*(\S)")
_BYTE_ORDER_MARK = "\ufeff"
_DECODER = json.JSONDecoder(parse_constant=refuse_constant)


def read_json(file: BinaryIO, start: Position = START) -> Iterator[Record]:
    """The values of a JSON file from a position on; blank lines are skipped."""
    if start != START:
        file.seek(0)
    beginning = peek(file, _PEEK_BYTES).decode(errors="replace").removeprefix(_BYTE_ORDER_MARK)
    if not _ONE_VALUE.match(beginning):
        return _read_json_lines(file, start)
    return _read_array(file, start, is_array=beginning.lstrip().startswith("["))


def read_parquet(file: BinaryIO, start: Position = START) -> Iterator[Record]:
    """The rows of a Parquet file; `start` and the end of a record count rows, not bytes.

    Raises:
        UnreadableFile: it cannot be read, or pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        problem = "is a Parquet file, which needs pyarrow: install it, or convert the file to JSON lines"
        raise UnreadableFile.of_field(_name_of(file), problem) from error
    number = 0
    try:
        with pq.ParquetFile(file) as rows:
            for batch in rows.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    if number > start.line_number:
                        yield Record(number, b"", Position(0, number), fields)
    except (OSError, ValueError) as error:
        problem = f"is not a readable Parquet file: {error}"
        raise UnreadableFile.of_field(_name_of(file), problem) from error


def read_objects(
    file: BinaryIO, file_format: Format, name: str | Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs of the place of each object of a JSON or Parquet file, for messages, and the object.

    Raises:
        UnreadableFile: a line, an item or a row cannot be read or is not an object.
    """
    is_parquet = file_format is Format.PARQUET
    for record in (read_parquet if is_parquet else read_json)(file):
        place = f"{file_name(name)} {'row' if is_parquet else 'line'} {record.line_number}"
        if record.problem:
            raise UnreadableFile.of_field(place, record.problem)
        if not isinstance(record.fields, dict):
            raise UnreadableFile.of_field(place, "is not a JSON object")
        yield place, record.fields


def _name_of(file: BinaryIO) -> str:
    return str(getattr(file, "name", "the file"))


def _read_json_lines(file: BinaryIO, start: Position) -> Iterator[Record]:
    for line in read_lines(file, start):
        if not line.content.strip():
            continue
        try:
            yield Record(line.number, line.content, line.end, line.json())
        except UnreadableLine as error:
            yield Record(line.number, line.content, line.end, problem=str(error))


def _read_array(file: BinaryIO, start: Position, *, is_array: bool) -> Iterator[Record]:
    """Items of an array from a position behind one of them, or objects that span lines.

    Args:
        is_array: the file begins with its bracket.
    """
    if file.seekable():
        file.seek(start.offset_bytes)
    text = _Text(file, start)
    try:
        yield from _items(text, is_array=is_array, is_in_array=start != START)
    except UnreadableLine as error:
        number = text.position.line_number + 1
        yield Record(number, b"", text.position, problem=f"{error}; the rest of the file is not read")


def _items(text: _Text, *, is_array: bool, is_in_array: bool) -> Iterator[Record]:
    # Behind the first item of an array in an object, it looks like objects that span lines.
    is_strict, is_behind_item = is_array, is_in_array
    while (character := text.skip_space()) and not (is_in_array and character == "]"):
        if character == ",":
            text.advance(1)
            if is_strict and (not is_behind_item or text.skip_space() == "]"):
                raise UnreadableLine("is not JSON: a comma without an item")
            is_behind_item = False
        elif is_in_array:
            if is_strict and is_behind_item:
                raise UnreadableLine("is not JSON: no comma behind an item")
            yield text.item()
            is_behind_item = True
        elif character == "[":
            text.advance(1)
            is_in_array = True
        elif whole := text.object_before_array():
            yield whole
        else:
            is_in_array = is_strict = True
    text.check_end(character, is_strict=is_strict, is_array=is_array)


class _Text:
    """The text of a file, decoded as far as it is needed. `position` is that of the next character."""

    def __init__(self, file: BinaryIO, start: Position) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._next = 0
        self._is_at_start = start == START
        self.position = start

    def skip_space(self) -> str:
        """Skip white space. Returns the next character, which is not read; "" at the end."""
        while True:
            found = _SPACE.match(self._text, self._next)
            self.advance(found.end() - self._next if found else 0)
            if self._next < len(self._text):
                return self._text[self._next]
            if not self._fill():
                return ""

    def advance(self, count: int) -> str:
        """Skip and return characters that `skip_space` or `value` have seen."""
        skipped = self._text[self._next : self._next + count]
        self._next += count
        before = self.position
        size_bytes = len(skipped.encode())
        self.position = Position(before.offset_bytes + size_bytes, before.line_number + skipped.count("\n"))
        return skipped

    def check_end(self, character: str, *, is_strict: bool, is_array: bool) -> None:
        """Check that an array is closed, and that nothing follows it if it is the whole file."""
        if is_strict and character != "]":
            raise UnreadableLine("is not JSON: the array has no end")
        self.advance(1)
        if is_array and self.skip_space():
            raise UnreadableLine("is not JSON: something follows the array")

    def item(self) -> Record:
        """The next value."""
        number = self.position.line_number + 1
        value, content = self._value()
        return Record(number, content.encode() + b"\n", self.position, value)

    def object_before_array(self) -> Record | None:
        """The next object; None if it has an array of objects, behind whose bracket the text then is.

        Raises:
            UnreadableLine: it is not an object.
        """
        number = self.position.line_number + 1
        if self.skip_space() != "{":
            raise UnreadableLine("is not JSON: it must be an array of objects, or one object per line")
        self.advance(1)
        members: dict[str, Any] = {}
        while (character := self.skip_space()) != "}":
            if character == ",":
                self.advance(1)
                continue
            key, _ = self._value()
            if not isinstance(key, str) or self.skip_space() != ":":
                raise UnreadableLine("is not JSON: Expecting a name in double quotes and a colon")
            self.advance(1)
            if self.skip_space() == "[" and self._begins_array_of_objects():
                self.advance(1)
                return None
            members[key], _ = self._value()
        self.advance(1)
        return Record(number, json.dumps(members).encode() + b"\n", self.position, members)

    def _begins_array_of_objects(self) -> bool:
        while (found := _ARRAY_OF_OBJECTS.match(self._text, self._next)) is None:
            if not self._fill():
                return False
        return found[1] == "{"

    def _value(self) -> tuple[Any, str]:
        """The next value and its text. It is decoded again each time that more text is read for it."""
        while True:
            problem = ""
            try:
                value, end = _DECODER.raw_decode(self._text, self._next)
            except json.JSONDecodeError as error:
                number = self.position.line_number + 1 + self._text.count("\n", self._next, error.pos)
                problem = f"is not JSON: {error.msg} in line {number}"
            except ValueError as error:
                raise UnreadableLine(f"is not JSON: {error}") from error
            except RecursionError:
                raise UnreadableLine("is nested too deeply") from None
            # A number at the end of the text may have more digits.
            is_complete = not problem and end < len(self._text)
            if is_complete or not self._fill():
                if problem:
                    raise UnreadableLine(problem)
                return value, self.advance(end - self._next)

    def _fill(self) -> bool:
        """Read more. Returns False at the end of the file, or if the next value is too long."""
        kept = self._text[self._next :]
        if len(kept) > line_reader.MAX_LINE_BYTES:
            return False
        content = self._file.read(max(_CHUNK_BYTES, len(kept)))
        try:
            text = self._decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8: byte 0x{error.object[error.start]:02x}{gbk_hint(content)}"
            raise UnreadableLine(problem) from error
        self._text, self._next = kept + text, 0
        if self._is_at_start and self._text:
            self._is_at_start = False
            if self._text[0] == _BYTE_ORDER_MARK:
                self.advance(1)
        return bool(content)
