"""Attributes of documents to and from google.protobuf.Struct, whose only numbers are doubles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from textmatch.documents import MAX_VERSION

# Beyond it a double no longer tells neighbouring whole numbers apart.
_MAX_WHOLE = MAX_VERSION


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Plain values; whole numbers become int as long as a double holds them exactly.

    What is no JSON (NaN, infinity) stays as it is, and `documents.attributes_violation` names it.
    """
    return {name: _from_value(value) for name, value in struct.fields.items()}


def to_struct(attributes: Mapping[str, Any]) -> struct_pb2.Struct:
    """The reverse."""
    struct = struct_pb2.Struct()
    struct.update(attributes)
    return struct


def _from_value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            return _number(value.number_value)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_from_value(element) for element in value.list_value.values]
    return None


def _number(number: float) -> int | float:
    if number.is_integer() and abs(number) <= _MAX_WHOLE:
        return int(number)
    return number
