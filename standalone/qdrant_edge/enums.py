"""Enumerations have the same member names in the API and in the engine."""

from __future__ import annotations

from typing import Any


def to_edge_enum(edge_enum: Any, proto_enum: Any, value: int) -> Any:
    """The engine's member for a value of the API's enumeration."""
    return getattr(edge_enum, proto_enum.Name(value))


def to_proto_enum(proto_enum: Any, member: Any) -> Any:
    """The reverse; the engine's members print as `Distance.Cosine`."""
    return proto_enum.Value(str(member).rpartition(".")[2])
