"""Ids, vectors, payloads, results and filters, from and to protobuf."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import qdrant_edge as edge
from google.protobuf.timestamp_pb2 import Timestamp
from qdrant_client import grpc as pb

from standalone.qdrant_edge.errors import invalid, unsupported

# The API's name of the vector in a collection that has only one.
DEFAULT_VECTOR = ""

EdgeId: TypeAlias = int | uuid.UUID | str
# The engine supports multi-vectors too; none are ever stored here.
NamedVector: TypeAlias = list[float] | list[list[float]] | edge.SparseVector


@dataclass(frozen=True)
class VectorSchema:
    """The vectors of a collection: size by name of the dense ones, names of the sparse ones."""

    dense: Mapping[str, int]
    sparse: frozenset[str]


def to_edge_enum(edge_enum: Any, proto_enum: Any, value: int) -> Any:
    """The engine's member for a value of the API's enumeration; both use the same names."""
    return getattr(edge_enum, proto_enum.Name(value))


def to_edge_id(point_id: pb.PointId) -> EdgeId:
    """An unsigned integer or a UUID in text form."""
    kind = point_id.WhichOneof("point_id_options")
    if kind is None:
        raise invalid("Malformed PointId type")
    return point_id.num if kind == "num" else point_id.uuid


def to_point_id(edge_id: EdgeId) -> pb.PointId:
    """The reverse of `to_edge_id`."""
    return pb.PointId(num=edge_id) if isinstance(edge_id, int) else pb.PointId(uuid=str(edge_id))


def to_edge_vectors(vectors: pb.Vectors, schema: VectorSchema) -> dict[str, NamedVector]:
    """The vectors of one point, checked against the schema.

    The engine logs a write before it checks it, and would replay an invalid write at every start. Therefore
    all writes that the engine would refuse must be refused here.
    """
    kind = vectors.WhichOneof("vectors_options")
    if kind is None:
        raise invalid("Expected some vectors")
    if kind == "vector":
        return {DEFAULT_VECTOR: _checked_vector(DEFAULT_VECTOR, vectors.vector, schema)}
    return {name: _checked_vector(name, vector, schema) for name, vector in vectors.vectors.vectors.items()}


def to_edge_vector(vector: Any) -> NamedVector:
    """One `Vector` of a point or `VectorInput` of a query."""
    kind = vector.WhichOneof("vector" if isinstance(vector, pb.Vector) else "variant")
    if kind == "dense":
        components: list[float] = vector.dense.data[:]
        return components
    if kind is None:
        raise invalid("a vector must be given as dense or sparse")
    if kind != "sparse":
        raise unsupported(f"a vector given as {kind}")
    indices, values = vector.sparse.indices[:], vector.sparse.values[:]
    if len(indices) != len(values):
        raise invalid(f"must be the same length as indices: {len(indices)} indices, {len(values)} values")
    if len(set(indices)) != len(indices):
        raise invalid("indices of a sparse vector must be unique")
    return edge.SparseVector(indices, values)


def to_payload(fields: Mapping[str, pb.Value]) -> dict[str, Any]:
    """A protobuf map as a JSON-like dictionary."""
    return {key: _to_python(value) for key, value in fields.items()}


def scored_points(hits: Iterable[edge.ScoredPoint]) -> list[pb.ScoredPoint]:
    """Hits of a query, best first."""
    return [
        _with_content(pb.ScoredPoint(id=to_point_id(hit.id), score=hit.score, version=hit.version), hit)
        for hit in hits
    ]


def retrieved_points(records: Iterable[edge.Record]) -> list[pb.RetrievedPoint]:
    """Points read by id or by scrolling."""
    return [_with_content(pb.RetrievedPoint(id=to_point_id(record.id)), record) for record in records]


def to_edge_filter(message: pb.Filter) -> edge.Filter:
    """A filter with its nested conditions."""
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


def _checked_vector(name: str, vector: pb.Vector, schema: VectorSchema) -> NamedVector:
    converted = to_edge_vector(vector)
    if name not in schema.dense and name not in schema.sparse:
        raise invalid(f"Not existing vector name error: {name}")
    if isinstance(converted, edge.SparseVector) != (name in schema.sparse):
        raise invalid("Conversion between sparse and regular vectors failed")
    if isinstance(converted, list) and len(converted) != schema.dense[name]:
        expected = schema.dense[name]
        raise invalid(f"Vector dimension error: expected dim: {expected}, got {len(converted)}")
    return converted


def _with_content(message: Any, point: edge.ScoredPoint | edge.Record) -> Any:
    if point.payload:
        _fill_fields(message.payload, point.payload)
    if isinstance(point.vector, dict):
        for name, vector in point.vector.items():
            message.vectors.vectors.vectors[name].CopyFrom(_to_vector_output(vector))
        message.vectors.vectors.SetInParent()
    elif point.vector is not None:
        message.vectors.vector.CopyFrom(_to_vector_output(point.vector))
    return message


def _to_vector_output(vector: Any) -> pb.VectorOutput:
    if isinstance(vector, edge.SparseVector):
        return pb.VectorOutput(sparse=pb.SparseVector(indices=vector.indices, values=vector.values))
    return pb.VectorOutput(dense=pb.DenseVector(data=vector))


def _to_python(value: pb.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    if kind == "struct_value":
        return to_payload(value.struct_value.fields)
    if kind == "list_value":
        return [_to_python(item) for item in value.list_value.values]
    return getattr(value, kind)


def _fill_fields(fields: Any, payload: Mapping[str, Any]) -> None:
    """Write a payload into a protobuf map in place, which is twice as fast as building messages."""
    for key, value in payload.items():
        _fill(fields[key], value)


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
            _fill_fields(target.struct_value.fields, value)
        case _:
            target.list_value.SetInParent()
            for item in value:
                _fill(target.list_value.values.add(), item)


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
    parts = {field.name: value for field, value in message.ListFields() if field.name != "key"}
    if not parts:
        raise invalid(f"the condition on `{message.key}` is empty")
    arguments = {}
    for part, value in parts.items():
        if part not in _FIELD_PARTS:
            raise unsupported(f"the condition {part}")
        argument, convert = _FIELD_PARTS[part]
        arguments[argument] = convert(value)
    return edge.FieldCondition(message.key, **arguments)


def _match(message: pb.Match) -> Any:
    kind = message.WhichOneof("match_value")
    if kind is None:
        raise invalid("Malformed Match condition")
    if kind not in _MATCHES:
        raise unsupported(f"the match {kind}")
    return _MATCHES[kind](getattr(message, kind))


def _bounds(message: Any) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def _datetime_range(message: pb.DatetimeRange) -> edge.RangeDateTime:
    bounds: dict[str, Timestamp] = _bounds(message)
    return edge.RangeDateTime(**{name: bound.ToJsonString() for name, bound in bounds.items()})


# The engine takes Python's bool for an integer; numpy's is only a boolean.
_MATCHES: Final[dict[str, Callable[[Any], Any]]] = {
    "keyword": edge.MatchValue,
    "integer": edge.MatchValue,
    "boolean": lambda flag: edge.MatchValue(np.bool_(flag)),  # type: ignore[arg-type]
    "text": edge.MatchText,
    "prefix": edge.MatchPrefix,
    "keywords": lambda message: edge.MatchAny(message.strings[:]),
    "integers": lambda message: edge.MatchAny(message.integers[:]),
    "except_keywords": lambda message: edge.MatchExcept(message.strings[:]),
    "except_integers": lambda message: edge.MatchExcept(message.integers[:]),
}

# Field of the message -> argument of the engine's condition and how to make it.
_FIELD_PARTS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "match": ("match", _match),
    "range": ("range", lambda message: edge.RangeFloat(**_bounds(message))),
    "datetime_range": ("range", _datetime_range),
    "values_count": ("values_count", lambda message: edge.ValuesCount(**_bounds(message))),
}
