"""Limits on requests that are checked before a request is parsed.

Parsing blocks the event loop: protobuf takes half a second for 8 MiB of a map with many keys, and 0.2 seconds
and 300 MB of memory for 8 MiB of empty submessages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from textmatch.errors import InvalidInput

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10


class RawField(NamedTuple):
    """One field of a message on the wire: its number, and where its content is."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one method.

    Args:
        max_bytes: of the request.
        max_fields: at the top level, where each item of a repeated field is one. It bounds the time of
            parsing; callers know the lower limits of the method itself.
        part_bytes: of all fields with a number together.
        parse: instead of the parser of the generated stub.
    """

    max_bytes: int
    max_fields: int = 10_000
    part_bytes: Mapping[int, int] = field(default_factory=dict)
    parse: Callable[[bytes], Any] | None = None

    def check(self, data: bytes) -> None:
        """Check a request. Takes little time for any bytes.

        Raises:
            InvalidInput: a limit is exceeded.
            DecodeError: it is not a message.
        """
        if len(data) > self.max_bytes:
            raise _too_large(f"has {len(data):,} bytes; the limit of this method is {self.max_bytes:,}")
        left = dict(self.part_bytes)
        for one in raw_fields(data, self.max_fields):
            if one.number in left:
                left[one.number] -= one.end - one.start
                if left[one.number] < 0:
                    limit = self.part_bytes[one.number]
                    raise _too_large(f"has more than {limit:,} bytes in the field {one.number}")


def raw_fields(data: bytes, max_fields: int) -> Iterator[RawField]:
    """The fields at the top level of a message. The content of a number is its encoding.

    Raises:
        InvalidInput: there are more than `max_fields`.
        DecodeError: it is not a message, or has a group, which proto3 does not use.
    """
    position = count = 0
    while position < len(data):
        count += 1
        if count > max_fields:
            raise _too_large(f"has more than {max_fields:,} items")
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _BYTES:
            length, position = _varint(data, position)
            end = position + length
        elif wire_type == _VARINT:
            _, end = _varint(data, position)
        elif wire_type in _FIXED_BYTES:
            end = position + _FIXED_BYTES[wire_type]
        else:
            raise DecodeError("unknown wire type")
        if end > len(data):
            raise DecodeError("truncated")
        yield RawField(number, position, end)
        position = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number and the position after it."""
    value = 0
    for shift, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise DecodeError("truncated")


def _too_large(description: str) -> InvalidInput:
    return InvalidInput.of_field("request", description)
