"""Filters from protobuf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import qdrant_edge as edge
from google.protobuf.timestamp_pb2 import Timestamp
from qdrant_client import grpc as pb

from standalone.qdrant_edge.errors import invalid, unsupported
from standalone.qdrant_edge.points import to_edge_id


def to_edge_filter(message: pb.Filter) -> edge.Filter:
    """A filter with all that is inside it."""
    min_should = None
    if message.HasField("min_should"):
        conditions = _conditions(message.min_should.conditions)
        min_should = edge.MinShould(conditions, message.min_should.min_count)
    return edge.Filter(
        must=_conditions(message.must) or None,
        should=_conditions(message.should) or None,
        must_not=_conditions(message.must_not) or None,
        min_should=min_should,
    )


def optional_filter(message: Any, field: str = "filter") -> edge.Filter | None:
    """The filter in that field of a request, if there is one."""
    return to_edge_filter(getattr(message, field)) if message.HasField(field) else None


def _conditions(messages: Any) -> list[Any]:
    return [_condition(message) for message in messages]


def _condition(message: pb.Condition) -> Any:
    kind = message.WhichOneof("condition_one_of")
    match kind:
        case "field":
            return _field_condition(message.field)
        case "filter":
            return to_edge_filter(message.filter)
        case "has_id":
            return edge.HasIdCondition({to_edge_id(one) for one in message.has_id.has_id})
        case "is_empty":
            return edge.IsEmptyCondition(message.is_empty.key)
        case "is_null":
            return edge.IsNullCondition(message.is_null.key)
        case "nested":
            return edge.NestedCondition(message.nested.key, to_edge_filter(message.nested.filter))
        case "has_vector":
            return edge.HasVectorCondition(message.has_vector.has_vector)
        case None:
            raise invalid("Malformed Condition type")
    raise unsupported(f"the condition {kind}")


def _field_condition(message: pb.FieldCondition) -> edge.FieldCondition:
    arguments = {
        name: convert(getattr(message, field))
        for field, (name, convert) in _FIELD_PARTS.items()
        if message.HasField(field)  # type: ignore[arg-type]
    }
    if not arguments:
        raise invalid(f"the condition on `{message.key}` says nothing")
    return edge.FieldCondition(message.key, **arguments)


def _match(message: pb.Match) -> Any:
    kind = message.WhichOneof("match_value")
    if kind is None:
        raise invalid("Malformed Match condition")
    return _MATCHES[kind](getattr(message, kind))


def _bounds(message: Any, convert: Callable[[Any], Any]) -> dict[str, Any]:
    return {field.name: convert(value) for field, value in message.ListFields()}


def _identity(value: Any) -> Any:
    return value


def _geo_point(message: pb.GeoPoint) -> edge.GeoPoint:
    return edge.GeoPoint(message.lon, message.lat)


def _ring(message: pb.GeoLineString) -> list[edge.GeoPoint]:
    return [_geo_point(point) for point in message.points]


def _geo_polygon(message: pb.GeoPolygon) -> edge.GeoPolygon:
    return edge.GeoPolygon(_ring(message.exterior), [_ring(ring) for ring in message.interiors])


def _geo_bounding_box(message: pb.GeoBoundingBox) -> edge.GeoBoundingBox:
    return edge.GeoBoundingBox(_geo_point(message.top_left), _geo_point(message.bottom_right))


# The engine takes Python's bool for the integer that it also is; numpy's is only a flag.
_MATCHES: Final[dict[str, Callable[[Any], Any]]] = {
    "keyword": edge.MatchValue,
    "integer": edge.MatchValue,
    "boolean": lambda flag: edge.MatchValue(np.bool_(flag)),  # type: ignore[arg-type]
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
    "prefix": edge.MatchPrefix,
    "substring": edge.MatchSubstring,
    "keywords": lambda message: edge.MatchAny(message.strings[:]),
    "integers": lambda message: edge.MatchAny(message.integers[:]),
    "except_keywords": lambda message: edge.MatchExcept(message.strings[:]),
    "except_integers": lambda message: edge.MatchExcept(message.integers[:]),
}

# Field of the message -> argument of the engine's condition and how to make it.
_FIELD_PARTS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "match": ("match", _match),
    "range": ("range", lambda message: edge.RangeFloat(**_bounds(message, _identity))),
    "datetime_range": (
        "range",
        lambda message: edge.RangeDateTime(**_bounds(message, Timestamp.ToJsonString)),
    ),
    "geo_bounding_box": ("geo_bounding_box", _geo_bounding_box),
    "geo_radius": (
        "geo_radius",
        lambda message: edge.GeoRadius(_geo_point(message.center), message.radius),
    ),
    "geo_polygon": ("geo_polygon", _geo_polygon),
    "values_count": ("values_count", lambda message: edge.ValuesCount(**_bounds(message, _identity))),
    "is_empty": ("is_empty", _identity),
    "is_null": ("is_null", _identity),
}
