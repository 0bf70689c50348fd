"""Attributes of documents to and from google.protobuf.Struct."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from textmatch.documents import MAX_EXACT_WHOLE_NUMBER
from textmatch.errors import InvalidInput

# A Struct holds numbers as IEEE doubles.
_MAX_WHOLE_NUMBER = MAX_EXACT_WHOLE_NUMBER


def to_struct(attributes: Mapping[str, Any], path: str = "attributes") -> struct_pb2.Struct:
    """JSON-like values -> Struct.

    Raises:
        InvalidInput: naming the value that JSON or a double cannot hold ("attributes.added").
    """
    fields = {_key(key, path): to_value(value, f"{path}.{key}") for key, value in attributes.items()}
    return struct_pb2.Struct(fields=fields)


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Struct -> JSON-like values; whole numbers come back as int."""
    return {key: _from_value(value) for key, value in struct.fields.items()}


def to_value(value: Any, path: str) -> struct_pb2.Value:
    """One JSON-like value -> Value.

    Raises:
        InvalidInput: naming what JSON or a double cannot hold.
    """
    match value:
        case None:
            return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
        case bool():
            return struct_pb2.Value(bool_value=value)
        case str():
            return struct_pb2.Value(string_value=value)
        case int() if abs(value) > _MAX_WHOLE_NUMBER:
            raise InvalidInput.of_field(path, f"is {value}; whole numbers are exact up to 2^53-1 only")
        case int() | float():
            return struct_pb2.Value(number_value=value)
        case Mapping():
            return struct_pb2.Value(struct_value=to_struct(value, path))
        case list() | tuple():
            items = [to_value(item, f"{path}[{position}]") for position, item in enumerate(value)]
            return struct_pb2.Value(list_value=struct_pb2.ListValue(values=items))
    raise InvalidInput.of_field(path, f"is a {type(value).__name__}, which JSON does not have")


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return key
    raise InvalidInput.of_field(path, f"has the key {key!r}; keys must be strings")


def _from_value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _MAX_WHOLE_NUMBER else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_from_value(item) for item in value.list_value.values]
    return None
