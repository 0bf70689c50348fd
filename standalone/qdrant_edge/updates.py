"""Writes from protobuf: one request becomes a list of engine operations, applied in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import qdrant_edge as edge
from google.protobuf.message import Message
from qdrant_client import grpc as pb

from standalone.qdrant_edge.conversions import (
    EdgeId,
    VectorSchema,
    optional_filter,
    to_edge_enum,
    to_edge_filter,
    to_edge_id,
    to_edge_vectors,
    to_payload,
)
from standalone.qdrant_edge.errors import invalid, unsupported

Operations: TypeAlias = list[edge.UpdateOperation]

_FIELD_TYPE_PREFIX: Final = "FieldType"


def to_operations(method: str, request: Message, schema: VectorSchema) -> Operations:
    """The engine's operations for a request of that method.

    Raises:
        RequestError: the request is invalid; nothing has been written.
    """
    _, convert = UPDATE_METHODS[method]
    return convert(request, schema)


def written_ids(request: Any) -> list[EdgeId]:
    """The points that a request names; the points that a filter selects are not known."""
    match request:
        case pb.UpdateBatchPoints():
            operations = [getattr(one, str(one.WhichOneof("operation"))) for one in request.operations]
            return [one for operation in operations for one in written_ids(operation)]
        case pb.UpsertPoints() | pb.PointsUpdateOperation.PointStructList():
            return [to_edge_id(point.id) for point in request.points]
        case pb.DeletePoints() | pb.PointsUpdateOperation.DeletePoints():
            return [to_edge_id(one) for one in request.points.points.ids]
    return []


def parse_update(method: str, data: bytes) -> Message:
    """A serialized request of that method."""
    request_type, _ = UPDATE_METHODS[method]
    return request_type.FromString(data)


def _upsert(request: Any, schema: VectorSchema) -> Operations:
    """`update_filter` is for points that exist; the others are always written."""
    points = [
        edge.Point(to_edge_id(point.id), to_edge_vectors(point.vectors, schema), to_payload(point.payload))
        for point in request.points
    ]
    mode = to_edge_enum(edge.UpdateMode, pb.UpdateMode, request.update_mode)
    condition = optional_filter(request, "update_filter")
    return [edge.UpdateOperation.upsert_points(points, condition, mode)]


def _delete(request: Any, _schema: VectorSchema) -> Operations:
    selector: pb.PointsSelector = request.points
    match selector.WhichOneof("points_selector_one_of"):
        case None:
            raise invalid("PointsSelector is missing")
        case "filter":
            return [edge.UpdateOperation.delete_points_by_filter(to_edge_filter(selector.filter))]
    return [edge.UpdateOperation.delete_points([to_edge_id(one) for one in selector.points.ids])]


def _create_field_index(request: pb.CreateFieldIndexCollection, _schema: VectorSchema) -> Operations:
    if request.HasField("field_index_params"):
        return [edge.UpdateOperation.create_field_index(request.field_name, _keyword_index(request))]
    if not request.HasField("field_type"):
        raise invalid("field_type is required")
    if request.field_type == pb.FieldTypeGeo:
        raise unsupported("the field_type FieldTypeGeo")
    name = pb.FieldType.Name(request.field_type).removeprefix(_FIELD_TYPE_PREFIX)
    schema_type = getattr(edge.PayloadSchemaType, name)
    return [edge.UpdateOperation.create_field_index(request.field_name, schema_type)]


def _keyword_index(request: pb.CreateFieldIndexCollection) -> edge.KeywordIndexParams:
    """A keyword index; only `is_tenant` may be set."""
    kind = request.field_index_params.WhichOneof("index_params")
    if kind != "keyword_index_params":
        raise unsupported(f"the field_index_params {kind}")
    keyword = request.field_index_params.keyword_index_params
    for field, _ in keyword.ListFields():
        if field.name != "is_tenant":
            raise unsupported(f"the keyword index's {field.name}")
    return edge.KeywordIndexParams(is_tenant=keyword.is_tenant)


def _delete_field_index(request: pb.DeleteFieldIndexCollection, _schema: VectorSchema) -> Operations:
    return [edge.UpdateOperation.delete_field_index(request.field_name)]


def _batch(request: pb.UpdateBatchPoints, schema: VectorSchema) -> Operations:
    return [operation for one in request.operations for operation in _batched(one, schema)]


def _batched(operation: pb.PointsUpdateOperation, schema: VectorSchema) -> Operations:
    kind = operation.WhichOneof("operation")
    match kind:
        case "upsert":
            return _upsert(operation.upsert, schema)
        case "delete_points":
            return _delete(operation.delete_points, schema)
    raise unsupported(f"the batched operation {kind}")


_Converter: TypeAlias = Callable[[Any, VectorSchema], Operations]

UPDATE_METHODS: Final[dict[str, tuple[type[Message], _Converter]]] = {
    "Upsert": (pb.UpsertPoints, _upsert),
    "Delete": (pb.DeletePoints, _delete),
    "CreateFieldIndex": (pb.CreateFieldIndexCollection, _create_field_index),
    "DeleteFieldIndex": (pb.DeleteFieldIndexCollection, _delete_field_index),
    "UpdateBatch": (pb.UpdateBatchPoints, _batch),
}
