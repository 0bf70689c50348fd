"""The one gRPC server bootstrap: health, reflection, interceptors, limits, drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from textmatch.circuit_breaker import DependencyGuard
from textmatch.runtime.auth import ApiKeys, AuthInterceptor, RateLimits
from textmatch.runtime.channel import MAX_MESSAGE_BYTES
from textmatch.runtime.interceptors import CallInterceptor, RequestInterceptor
from textmatch.runtime.process import PortTaken
from textmatch.runtime.request_limits import RequestLimits
from textmatch.runtime.tls import ServerTls

_log = logging.getLogger(__name__)

# gRPC itself refuses calls above the limit and this many more: without details, and health checks too.
_SPARE_CALLS = 1_000
_DEPENDENCY_SECONDS = 0.5


class _DescriptorPool:
    """The default pool, which finds the files of methods too. Reflection clients such as ghz ask for them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(descriptor_pool.Default(), name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 -- as of the pool
        pool = descriptor_pool.Default()
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return pool.FindMethodByName(symbol).containing_service.file


class GrpcServer:
    """One server on one port. Health is NOT_SERVING until `set_serving(True)`, and again while draining.

    Args:
        api_keys: None: every call is allowed.
        tls: None: not encrypted.
        connection_age_seconds: clients are told to reconnect after about this time; 0: never.
        max_running_calls: more calls of our services at the same time are refused.
        method_limits: limits of requests by "/package.Service/Method".
    """

    def __init__(
        self,
        host: str,
        port: int,
        max_request_bytes: int,
        *,
        api_keys: ApiKeys | None = None,
        tls: ServerTls | None = None,
        connection_age_seconds: float = 0,
        max_running_calls: int = 1_000,
        method_limits: Mapping[str, RequestLimits] | None = None,
    ) -> None:
        self._address = f"{host}:{port}"
        self._tls = tls
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._service_names = [""]
        options = [
            ("grpc.max_receive_message_length", max_request_bytes),
            ("grpc.max_send_message_length", max(max_request_bytes, MAX_MESSAGE_BYTES)),
            # Otherwise two processes could listen on one port, and each would get half of the calls.
            ("grpc.so_reuseport", 0),
            # Clients ping idle connections every 30 seconds; see channel.py.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ]
        if connection_age_seconds:
            # gRPC adds a jitter of 10 %. No grace period is set: running calls and streams are not cancelled.
            options.append(("grpc.max_connection_age_ms", round(connection_age_seconds * 1000)))
        interceptors: list[grpc.aio.ServerInterceptor[Any, Any]] = [
            CallInterceptor(max_running_calls),
            RequestInterceptor(method_limits or {}),
        ]
        if api_keys is not None:
            interceptors.append(AuthInterceptor(api_keys, RateLimits()))
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=options,
            maximum_concurrent_rpcs=max_running_calls + _SPARE_CALLS,
        )

    def add(
        self, register: Callable[[Any, grpc.aio.Server], None], servicer: object, service_name: str
    ) -> None:
        """Add a service: `register` is the generated `add_...Servicer_to_server`."""
        register(servicer, self._server)
        self._service_names.append(service_name)

    async def start(self) -> str:
        """Listen; returns the address with the real port.

        Raises:
            PortTaken: another process listens there.
            InvalidInput: a file of `tls` cannot be used.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflected = [*self._service_names[1:], health.SERVICE_NAME, reflection.SERVICE_NAME]
        pool: Any = _DescriptorPool()
        reflection.enable_server_reflection(reflected, self._server, pool)
        await self.set_serving(is_serving=False)
        credentials = self._tls.credentials() if self._tls else None
        try:
            if credentials is None:
                port = self._server.add_insecure_port(self._address)
            else:
                port = self._server.add_secure_port(self._address, credentials)
        except RuntimeError as error:
            raise PortTaken(f"cannot listen on {self._address}; is the port in use? ({error})") from error
        await self._server.start()
        host = self._address.rpartition(":")[0]
        return f"{host}:{port}"

    async def set_serving(self, *, is_serving: bool) -> None:
        """Set the health of every service and of the server as a whole."""
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if is_serving else statuses.NOT_SERVING
        for name in self._service_names:
            await self._health.set(name, status)

    async def show_dependencies(self, guards: Sequence[DependencyGuard]) -> None:
        """Serve the health of each store under its name, such as "qdrant", until cancelled.

        The health of the server itself stays SERVING: it answers what it can, and says what is wrong.
        """
        statuses = health_pb2.HealthCheckResponse
        while True:
            for guard in guards:
                status = statuses.SERVING if guard.error is None else statuses.NOT_SERVING
                await self._health.set(guard.name, status)
            await asyncio.sleep(_DEPENDENCY_SECONDS)

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new calls, let running ones end within the grace period, then stop."""
        _log.info("draining", extra={"grace_seconds": grace_seconds})
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)
