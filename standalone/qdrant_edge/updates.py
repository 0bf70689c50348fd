"""Writes from protobuf: one request becomes a list of engine operations, applied in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import qdrant_edge as edge
from google.protobuf.message import Message
from qdrant_client import grpc as pb

from standalone.qdrant_edge.enums import to_edge_enum
from standalone.qdrant_edge.errors import invalid, unsupported
from standalone.qdrant_edge.field_indexes import index_schema
from standalone.qdrant_edge.filters import optional_filter, to_edge_filter
from standalone.qdrant_edge.payloads import to_payload
from standalone.qdrant_edge.points import EdgeId, VectorSchema, to_edge_id, to_edge_vectors

Operations: TypeAlias = list[edge.UpdateOperation]


def to_operations(method: str, request: Message, schema: VectorSchema) -> Operations:
    """What the engine has to do for a request of that method.

    Raises:
        RequestError: the request is wrong; nothing has been written.
    """
    _, convert = UPDATE_METHODS[method]
    return convert(request, schema)


def written_ids(request: Any) -> list[EdgeId]:
    """The points that a request names; which ones a filter selects is not known."""
    if isinstance(request, pb.UpdateBatchPoints):
        operations = [getattr(one, str(one.WhichOneof("operation"))) for one in request.operations]
        return [one for operation in operations for one in written_ids(operation)]
    if isinstance(request, _WITH_POINTS):
        return [to_edge_id(point.id) for point in request.points]
    selector = getattr(request, "points_selector", getattr(request, "points", pb.PointsSelector()))
    return [to_edge_id(one) for one in selector.points.ids]


def parse_update(method: str, data: bytes) -> Message:
    """A serialized request of that method."""
    request_type, _ = UPDATE_METHODS[method]
    return request_type.FromString(data)


def _upsert(request: Any, schema: VectorSchema) -> Operations:
    """`update_filter` is for points that exist; one that does not is written whatever the filter says."""
    points = [
        edge.Point(to_edge_id(point.id), to_edge_vectors(point.vectors, schema), to_payload(point.payload))
        for point in request.points
    ]
    mode = to_edge_enum(edge.UpdateMode, pb.UpdateMode, request.update_mode)
    condition = optional_filter(request, "update_filter")
    return [edge.UpdateOperation.upsert_points(points, condition, mode)]


def _delete(request: Any, _schema: VectorSchema) -> Operations:
    operation = edge.UpdateOperation
    return [_selected(request.points, operation.delete_points, operation.delete_points_by_filter)]


def _update_vectors(request: Any, schema: VectorSchema) -> Operations:
    vectors = [
        edge.PointVectors(to_edge_id(point.id), to_edge_vectors(point.vectors, schema))
        for point in request.points
    ]
    return [edge.UpdateOperation.update_vectors(vectors, optional_filter(request, "update_filter"))]


def _delete_vectors(request: Any, schema: VectorSchema) -> Operations:
    selector, names = request.points_selector, list(request.vectors.names)
    for name in names:
        if name not in schema.dense and name not in schema.sparse:
            raise invalid(f"Not existing vector name error: {name}")
    operation = edge.UpdateOperation
    return [_selected(selector, operation.delete_vectors, operation.delete_vectors_by_filter, names)]


def _set_payload(request: Any, _schema: VectorSchema) -> Operations:
    operation = edge.UpdateOperation
    return [_payload_operation(request, operation.set_payload, operation.set_payload_by_filter)]


def _overwrite_payload(request: Any, _schema: VectorSchema) -> Operations:
    operation = edge.UpdateOperation
    return [_payload_operation(request, operation.overwrite_payload, operation.overwrite_payload_by_filter)]


def _payload_operation(
    request: Any, by_ids: Callable[..., edge.UpdateOperation], by_filter: Callable[..., edge.UpdateOperation]
) -> edge.UpdateOperation:
    key = request.key if request.HasField("key") else None
    return _selected(request.points_selector, by_ids, by_filter, to_payload(request.payload), key)


def _delete_payload(request: Any, _schema: VectorSchema) -> Operations:
    operation = edge.UpdateOperation
    selector, keys = request.points_selector, list(request.keys)
    return [_selected(selector, operation.delete_payload, operation.delete_payload_by_filter, keys)]


def _clear_payload(request: Any, _schema: VectorSchema) -> Operations:
    operation = edge.UpdateOperation
    return [_selected(request.points, operation.clear_payload, operation.clear_payload_by_filter)]


def _create_field_index(request: pb.CreateFieldIndexCollection, _schema: VectorSchema) -> Operations:
    return [edge.UpdateOperation.create_field_index(request.field_name, index_schema(request))]


def _delete_field_index(request: pb.DeleteFieldIndexCollection, _schema: VectorSchema) -> Operations:
    return [edge.UpdateOperation.delete_field_index(request.field_name)]


def _batch(request: pb.UpdateBatchPoints, schema: VectorSchema) -> Operations:
    return [operation for one in request.operations for operation in _batched(one, schema)]


def _batched(operation: pb.PointsUpdateOperation, schema: VectorSchema) -> Operations:
    kind = operation.WhichOneof("operation")
    if kind not in _BATCHED:
        raise unsupported(f"the batched operation {kind}")
    return _BATCHED[kind](getattr(operation, kind), schema)


def _selected(
    selector: pb.PointsSelector,
    by_ids: Callable[..., edge.UpdateOperation],
    by_filter: Callable[..., edge.UpdateOperation],
    *arguments: Any,
) -> edge.UpdateOperation:
    kind = selector.WhichOneof("points_selector_one_of")
    if kind is None:
        raise invalid("PointsSelector is missing")
    if kind == "filter":
        return by_filter(to_edge_filter(selector.filter), *arguments)
    return by_ids([to_edge_id(one) for one in selector.points.ids], *arguments)


_WITH_POINTS: Final = (
    pb.UpsertPoints,
    pb.UpdatePointVectors,
    pb.PointsUpdateOperation.PointStructList,
    pb.PointsUpdateOperation.UpdateVectors,
)

_Converter: TypeAlias = Callable[[Any, VectorSchema], Operations]

UPDATE_METHODS: Final[dict[str, tuple[type[Message], _Converter]]] = {
    "Upsert": (pb.UpsertPoints, _upsert),
    "Delete": (pb.DeletePoints, _delete),
    "UpdateVectors": (pb.UpdatePointVectors, _update_vectors),
    "DeleteVectors": (pb.DeletePointVectors, _delete_vectors),
    "SetPayload": (pb.SetPayloadPoints, _set_payload),
    "OverwritePayload": (pb.SetPayloadPoints, _overwrite_payload),
    "DeletePayload": (pb.DeletePayloadPoints, _delete_payload),
    "ClearPayload": (pb.ClearPayloadPoints, _clear_payload),
    "CreateFieldIndex": (pb.CreateFieldIndexCollection, _create_field_index),
    "DeleteFieldIndex": (pb.DeleteFieldIndexCollection, _delete_field_index),
    "UpdateBatch": (pb.UpdateBatchPoints, _batch),
}

_BATCHED: Final[dict[str, _Converter]] = {
    "upsert": _upsert,
    "delete_points": _delete,
    "update_vectors": _update_vectors,
    "delete_vectors": _delete_vectors,
    "set_payload": _set_payload,
    "overwrite_payload": _overwrite_payload,
    "delete_payload": _delete_payload,
    "clear_payload": _clear_payload,
}
