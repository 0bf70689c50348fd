"""A real gateway on a free loopback port, inside the test's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from services.gateway.app import create_app
from services.gateway.caller import Gateway
from services.gateway.server import HttpServer
from textmatch.client import AsyncTextMatchClient
from textmatch.runtime.tls import ServerTls

MAX_BODY_BYTES = 1024 * 1024


@asynccontextmanager
async def serve_gateway(
    matcher: str,
    encoder: str,
    *,
    timeout_seconds: float = 10.0,
    max_requests: int = 100,
    aliases: Mapping[str, str] | None = None,
    cors_origins: Sequence[str] = (),
    tls: ServerTls | None = None,
) -> AsyncIterator[str]:
    """The URL of a gateway in front of these servers."""
    async with AsyncTextMatchClient(matcher, encoder, timeout_seconds=timeout_seconds, api_key="") as client:
        app = create_app(
            Gateway(client, 60.0, aliases or {}),
            max_body_bytes=MAX_BODY_BYTES,
            max_requests=max_requests,
            cors_origins=cors_origins,
            is_local=True,
        )
        server = HttpServer(app, "127.0.0.1", 0, tls=tls, drain_seconds=5)
        address = await server.start()
        watching = asyncio.create_task(server.watch_certificates())
        try:
            yield f"{'https' if tls else 'http'}://{address}"
        finally:
            watching.cancel()
            await server.drain()
