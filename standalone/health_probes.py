"""Probes that tell whether a process is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from textmatch.runtime.channel import open_aio_channel
from textmatch.runtime.tls import ClientTls

Probe = Callable[[], Coroutine[Any, Any, bool]]

_PROBE_SECONDS = 2.0


def redis_answers(host: str, port: int) -> Probe:
    """Redis answers PING with PONG; while it loads its files it answers with an error."""

    async def probe() -> bool:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"PING\r\n")
                answer = await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            return False
        return answer.startswith(b"+PONG")

    return probe


def grpc_serving(address: str, tls: ClientTls | None = None) -> Probe:
    """grpc.health.v1 says SERVING for the server as a whole."""

    async def probe() -> bool:
        async with open_aio_channel(address, tls) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_SECONDS)
            except grpc.aio.AioRpcError:
                return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    return probe


def metric_is_one(host: str, port: int, metric: str) -> Probe:
    """A gauge of the process's `/metrics` is 1."""

    def read() -> bool:
        try:
            with urlopen(f"http://{host}:{port}/metrics", timeout=_PROBE_SECONDS) as response:
                lines = response.read().decode().splitlines()
        except (OSError, URLError):
            return False
        return f"{metric} 1.0" in lines

    async def probe() -> bool:
        return await asyncio.to_thread(read)

    return probe
