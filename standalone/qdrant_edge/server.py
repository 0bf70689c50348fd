"""The gRPC server: routing, errors, health, clean stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from standalone.qdrant_edge.errors import as_request_error

_log = logging.getLogger(__name__)

# A handler turns a request into a response or raises; by the method's name in the API.
Handler: TypeAlias = Callable[[Any], Awaitable[Message]]
Handlers: TypeAlias = Mapping[str, Handler]
_RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only

HEALTH_SERVICES = ("", "qdrant.Qdrant")
_MAX_MESSAGE_BYTES = 64 * 2**20
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # Two servers on one port would each get a part of the calls.
    ("grpc.so_reuseport", 0),
    # Clients may ping idle connections that often.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]


class EdgeServer:
    """Serves descriptors' methods with handlers; whatever has no handler answers UNIMPLEMENTED."""

    def __init__(self, services: Mapping[ServiceDescriptor, Handlers]) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers((_Router(services),))

    async def start(self, host: str, port: int) -> int:
        """Listen and report SERVING; returns the port, which matters when 0 was asked for.

        Raises:
            RuntimeError: the address cannot be had.
        """
        bound_port = self._server.add_insecure_port(f"{host}:{port}")
        await self._server.start()
        for service in HEALTH_SERVICES:
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


def _served(method: MethodDescriptor, handler: Handler) -> _RpcHandler:
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
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not available in Qdrant Edge")

    return grpc.unary_unary_rpc_method_handler(call)
