"""The gRPC server with its two services: routing, statuses, health, clean stop."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

import grpc
import qdrant_edge as edge
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from qdrant_client import grpc as pb
from qdrant_client.grpc import collections_service_pb2, points_service_pb2, qdrant_pb2

from standalone.qdrant_edge.catalog import Catalog
from standalone.qdrant_edge.conversions import (
    optional_filter,
    retrieved_points,
    scored_points,
    to_edge_id,
    to_point_id,
)
from standalone.qdrant_edge.errors import as_request_error, unsupported
from standalone.qdrant_edge.queries import (
    DEFAULT_LIMIT,
    run_query,
    run_query_batch,
    with_payload,
    with_vectors,
)
from standalone.qdrant_edge.updates import UPDATE_METHODS

_log = logging.getLogger(__name__)

# A handler turns a request into a response or raises; by the method's name in the API.
Handlers: TypeAlias = Mapping[str, Callable[[Any], Awaitable[Message]]]
_RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only

_HEALTH_SERVICES: Final = ("", "qdrant.Qdrant")
_MAX_MESSAGE_BYTES: Final = 64 * 2**20
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # Otherwise two servers could listen on one port, and each would get a part of the calls.
    ("grpc.so_reuseport", 0),
    # Clients may ping this often while they wait for an answer.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
]


class CollectionsServicer:
    """`qdrant.Collections`: collections and aliases."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    @property
    def handlers(self) -> Handlers:
        """The methods that are answered, by their names in the API."""
        return {
            "Get": self._get,
            "List": self._list,
            "Create": self._create,
            "Update": self._update,
            "Delete": self._delete,
            "UpdateAliases": self._update_aliases,
            "ListCollectionAliases": self._list_collection_aliases,
            "ListAliases": self._list_aliases,
            "CollectionExists": self._exists,
        }

    async def _get(self, request: pb.GetCollectionInfoRequest) -> pb.GetCollectionInfoResponse:
        return pb.GetCollectionInfoResponse(result=self._catalog.resolve(request.collection_name).info())

    async def _list(self, _request: pb.ListCollectionsRequest) -> pb.ListCollectionsResponse:
        descriptions = [pb.CollectionDescription(name=name) for name in sorted(self._catalog.names)]
        return pb.ListCollectionsResponse(collections=descriptions)

    async def _create(self, request: pb.CreateCollection) -> pb.CollectionOperationResponse:
        self._catalog.create(request)
        return pb.CollectionOperationResponse(result=True)

    async def _update(self, request: pb.UpdateCollection) -> pb.CollectionOperationResponse:
        self._catalog.resolve(request.collection_name).change_settings(request)
        return pb.CollectionOperationResponse(result=True)

    async def _delete(self, request: pb.DeleteCollection) -> pb.CollectionOperationResponse:
        return pb.CollectionOperationResponse(result=await self._catalog.delete(request.collection_name))

    async def _update_aliases(self, request: pb.ChangeAliases) -> pb.CollectionOperationResponse:
        self._catalog.change_aliases(request.actions)
        return pb.CollectionOperationResponse(result=True)

    async def _list_collection_aliases(
        self, request: pb.ListCollectionAliasesRequest
    ) -> pb.ListAliasesResponse:
        name = self._catalog.resolve(request.collection_name).name
        return _alias_list({alias: one for alias, one in self._catalog.aliases.items() if one == name})

    async def _list_aliases(self, _request: pb.ListAliasesRequest) -> pb.ListAliasesResponse:
        return _alias_list(self._catalog.aliases)

    async def _exists(self, request: pb.CollectionExistsRequest) -> pb.CollectionExistsResponse:
        name = self._catalog.aliases.get(request.collection_name, request.collection_name)
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=name in self._catalog.names))


class PointsServicer:
    """`qdrant.Points`: reads and writes of points, through aliases too."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    @property
    def handlers(self) -> Handlers:
        """The methods that are answered, by their names in the API."""
        answered: Handlers = {
            **{method: partial(self._update, method) for method in UPDATE_METHODS},
            "UpdateBatch": self._update_batch,
            "Get": self._get,
            "Scroll": self._scroll,
            "Count": self._count,
            "Query": self._query,
            "QueryBatch": self._query_batch,
        }
        return {method: partial(self._checked, method, handler) for method, handler in answered.items()}

    async def _checked(
        self, method: str, handler: Callable[[Any], Awaitable[Message]], request: Any
    ) -> Message:
        collection = self._catalog.resolve(request.collection_name)
        collection.check_filters(request, is_update=method in UPDATE_METHODS)
        return await handler(request)

    async def _update(self, method: str, request: Any) -> pb.PointsOperationResponse:
        await self._catalog.resolve(request.collection_name).update(method, request)
        return pb.PointsOperationResponse(result=_update_result(request))

    async def _update_batch(self, request: pb.UpdateBatchPoints) -> pb.UpdateBatchResponse:
        await self._catalog.resolve(request.collection_name).update("UpdateBatch", request)
        return pb.UpdateBatchResponse(result=[_update_result(request) for _ in request.operations])

    async def _get(self, request: pb.GetPoints) -> pb.GetResponse:
        ids = [to_edge_id(one) for one in request.ids]
        collection = self._catalog.resolve(request.collection_name)
        payload, vectors = with_payload(request.with_payload), with_vectors(request.with_vectors)
        return pb.GetResponse(result=retrieved_points(collection.retrieve(ids, payload, vectors)))

    async def _scroll(self, request: pb.ScrollPoints) -> pb.ScrollResponse:
        if request.HasField("order_by"):
            raise unsupported("order_by")
        scroll = edge.ScrollRequest(
            offset=to_edge_id(request.offset) if request.HasField("offset") else None,
            limit=request.limit if request.HasField("limit") else DEFAULT_LIMIT,
            filter=optional_filter(request),
            with_payload=with_payload(request.with_payload),
            with_vector=with_vectors(request.with_vectors),
        )
        records, next_offset = self._catalog.resolve(request.collection_name).scroll(scroll)
        response = pb.ScrollResponse(result=retrieved_points(records))
        if next_offset is not None:
            response.next_page_offset.CopyFrom(to_point_id(next_offset))
        return response

    async def _count(self, request: pb.CountPoints) -> pb.CountResponse:
        exact = request.exact if request.HasField("exact") else True
        collection = self._catalog.resolve(request.collection_name)
        count = collection.count(edge.CountRequest(exact=exact, filter=optional_filter(request)))
        return pb.CountResponse(result=pb.CountResult(count=count))

    async def _query(self, request: pb.QueryPoints) -> pb.QueryResponse:
        collection = self._catalog.resolve(request.collection_name)
        return pb.QueryResponse(result=scored_points(run_query(collection, request)))

    async def _query_batch(self, request: pb.QueryBatchPoints) -> pb.QueryBatchResponse:
        collection = self._catalog.resolve(request.collection_name)
        response = pb.QueryBatchResponse()
        for hits in run_query_batch(collection, request.query_points):
            response.result.add(result=scored_points(hits))
        return response


class EdgeServer:
    """Serves a catalog; a method without a handler answers UNIMPLEMENTED."""

    def __init__(self, catalog: Catalog) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        router = _Router(
            {
                points_service_pb2.DESCRIPTOR.services_by_name["Points"]: PointsServicer(catalog).handlers,
                collections_service_pb2.DESCRIPTOR.services_by_name["Collections"]: CollectionsServicer(
                    catalog
                ).handlers,
                qdrant_pb2.DESCRIPTOR.services_by_name["Qdrant"]: {"HealthCheck": _health_check},
            }
        )
        self._server.add_generic_rpc_handlers((router,))

    async def start(self, host: str, port: int) -> int:
        """Listen and report SERVING; returns the actual port, which is useful if `port` is 0.

        Raises:
            RuntimeError: the address cannot be bound.
        """
        bound_port = self._server.add_insecure_port(f"{host}:{port}")
        await self._server.start()
        for service in _HEALTH_SERVICES:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return bound_port

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls and let running ones end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)


class _Router(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    def __init__(self, services: Mapping[ServiceDescriptor, Handlers]) -> None:
        self._methods = {
            f"/{service.full_name}/{name}": _served(service.methods_by_name[name], handler)
            for service, handlers in services.items()
            for name, handler in handlers.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _RpcHandler:
        method: str = handler_call_details.method
        return self._methods.get(method) or _unimplemented(method)


def _served(method: MethodDescriptor, handler: Callable[[Any], Awaitable[Message]]) -> _RpcHandler:
    async def call(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        started = time.perf_counter()
        try:
            response: Any = await handler(request)
        except Exception as error:  # noqa: BLE001 (every failure gets a status)
            failure = as_request_error(error)
            if failure.code == grpc.StatusCode.INTERNAL:
                _log.exception("%s failed", method.full_name)
            await context.abort(failure.code, failure.details)
        if "time" in response.DESCRIPTOR.fields_by_name:
            response.time = time.perf_counter() - started
        return response

    return grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _unimplemented(method: str) -> _RpcHandler:
    async def call(_request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        failure = unsupported(method)
        await context.abort(failure.code, failure.details)

    return grpc.unary_unary_rpc_method_handler(call)


async def _health_check(_request: pb.HealthCheckRequest) -> pb.HealthCheckReply:
    # The version whose API is served, which clients compare with their own.
    return pb.HealthCheckReply(title="Qdrant Edge", version=importlib.metadata.version("qdrant-client"))


def _update_result(request: Any) -> pb.UpdateResult:
    """Writes are always applied before the answer. The status depends on the request's `wait`."""
    return pb.UpdateResult(status=pb.Completed if request.wait else pb.Acknowledged)


def _alias_list(aliases: Mapping[str, str]) -> pb.ListAliasesResponse:
    descriptions: Iterable[pb.AliasDescription] = (
        pb.AliasDescription(alias_name=alias, collection_name=collection)
        for alias, collection in sorted(aliases.items())
    )
    return pb.ListAliasesResponse(aliases=descriptions)
