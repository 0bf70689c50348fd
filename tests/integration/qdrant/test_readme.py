"""The table in standalone/qdrant_edge/README.md is what the server answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from qdrant_client import QdrantClient
from qdrant_client import grpc as pb
from qdrant_client.grpc import collections_service_pb2, points_service_pb2, qdrant_pb2, snapshots_service_pb2

import standalone.qdrant_edge
from tests.integration.qdrant.conftest import DIMENSION, Address

_README = Path(standalone.qdrant_edge.__file__).with_name("README.md")
_SERVICES: dict[str, ServiceDescriptor] = {
    name: module.DESCRIPTOR.services_by_name[name]
    for name, module in {
        "Qdrant": qdrant_pb2,
        "Collections": collections_service_pb2,
        "Points": points_service_pb2,
        "Snapshots": snapshots_service_pb2,
    }.items()
}
_SCALARS = {"str": "1", "int": 1, "float": 1.0, "bool": True}


class Row(NamedTuple):
    """A service ("qdrant.Points", no path), or a method ("Points/Query") with a path into its request."""

    subject: str
    path: tuple[str, ...]
    answered: list[str]
    unimplemented: list[str]

    def __str__(self) -> str:
        return " ".join([self.subject, *self.path])

    @property
    def is_service(self) -> bool:
        return self.subject.startswith("qdrant.")

    def method(self, name: str) -> MethodDescriptor:
        """The method to call; `name` is of a row that is a service."""
        service, _, method = self.subject.removeprefix("qdrant.").partition("/")
        return _SERVICES[service].methods_by_name[method or name]


def _rows() -> list[Row]:
    lines = [line for line in _README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    rows = []
    for line in lines:
        subject, answered, unimplemented = (re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:4])
        path = tuple(subject[1].split(".")) if len(subject) > 1 else ()
        rows.append(Row(subject[0], path, answered, unimplemented))
    return rows


def test_the_table_has_every_method():
    listed = {row.subject: {*row.answered, *row.unimplemented} for row in _rows() if row.is_service}
    assert listed == {
        f"qdrant.{name}": {method.name for method in service.methods} for name, service in _SERVICES.items()
    }


def test_the_table_has_every_kind_of_a_choice():
    for row in _rows():
        if not row.path:
            continue
        field = _field(row.method(""), row.path)
        choices = (
            [{value.name for value in field.enum_type.values}]
            if field.enum_type
            else [{one.name for one in oneof.fields} for oneof in field.message_type.oneofs]
        )
        listed = {*row.answered, *row.unimplemented}
        complete = [choice for choice in choices if len(choice) > 1]
        assert all(choice <= listed for choice in complete), row


@pytest.mark.parametrize("row", _rows(), ids=str)
def test_answers_as_the_table_says(
    needs_standalone: None, address: Address, client: QdrantClient, collection: str, row: Row
):
    with grpc.insecure_channel(f"{address.host}:{address.port}") as channel:
        for name in row.answered:
            failure = _call(channel, row.method(name), _request(row, name, collection))
            assert failure is None or failure.code() != grpc.StatusCode.UNIMPLEMENTED, name
        for name in row.unimplemented:
            failure = _call(channel, row.method(name), _request(row, name, collection))
            assert failure is not None, name
            assert failure.code() == grpc.StatusCode.UNIMPLEMENTED, name
            assert name.lower() in failure.details().lower()
    for name in row.answered:
        client.delete_collection(f"{collection}-{name}")


def _call(channel: grpc.Channel, method: MethodDescriptor, request: Message) -> Any:
    """The error of a call, or None."""
    rpc = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    try:
        rpc(request, timeout=10)
    except grpc.RpcError as error:
        return error
    return None


def _request(row: Row, name: str, collection: str) -> Message:
    """A request with one part of a row; only as complete as it takes to reach the part."""
    request: Any = GetMessageClass(row.method(name).input_type)()
    if row.is_service:
        return request
    request.collection_name = collection
    if isinstance(request, pb.CreateCollection):
        request.collection_name = f"{collection}-{name}"
        request.vectors_config.params.size = DIMENSION
        request.vectors_config.params.distance = pb.Cosine
    if isinstance(request, pb.UpsertPoints):
        request.points.add().id.num = 1
    _set(request, [*row.path, name])
    return request


def _set(message: Any, path: Sequence[str]) -> None:
    """Set what a path names, such as `filter.must.field`, to something of its type."""
    name, *rest = path
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.enum_type:
        setattr(message, name, field.enum_type.values_by_name[rest[0]].number if rest else 0)
    elif not field.message_type:
        setattr(message, name, _SCALARS[type(field.default_value).__name__])
    elif field.message_type.GetOptions().map_entry:
        message.SetInParent()
    else:
        child = getattr(message, name)
        if field.is_repeated:
            child = child[0] if len(child) else child.add()
        child.SetInParent()
        if rest:
            _set(child, rest)


def _field(method: MethodDescriptor, path: Sequence[str]) -> FieldDescriptor:
    message = method.input_type
    for name in path:
        field: FieldDescriptor = message.fields_by_name[name]
        message = field.message_type
    return field
