"""JSON-like payloads, from and to protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from qdrant_client import grpc as pb

Payload: TypeAlias = dict[str, Any]


def to_payload(fields: Mapping[str, pb.Value]) -> Payload:
    """A protobuf map as a dictionary."""
    return {key: _to_python(value) for key, value in fields.items()}


def fill_fields(fields: Any, payload: Mapping[str, Any]) -> None:
    """Write a payload into a protobuf map in place, which is twice as fast as building messages."""
    for key, value in payload.items():
        _fill(fields[key], value)


def _to_python(value: pb.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    if kind == "struct_value":
        return to_payload(value.struct_value.fields)
    if kind == "list_value":
        return [_to_python(item) for item in value.list_value.values]
    return getattr(value, kind)


def _fill(target: Any, value: Any) -> None:
    match value:
        case str():
            target.string_value = value
        case None:
            target.null_value = pb.NULL_VALUE
        case bool():
            target.bool_value = value
        case int():
            target.integer_value = value
        case float():
            target.double_value = value
        case dict():
            target.struct_value.SetInParent()
            fill_fields(target.struct_value.fields, value)
        case _:
            target.list_value.SetInParent()
            for item in value:
                _fill(target.list_value.values.add(), item)
