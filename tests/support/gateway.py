"""A real gateway on a free loopback port, inside the test's event loop or in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

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
    has_console: bool = True,
) -> AsyncIterator[str]:
    """The URL of a gateway in front of these servers."""
    async with AsyncTextMatchClient(matcher, encoder, timeout_seconds=timeout_seconds, api_key="") as client:
        app = create_app(
            Gateway(client, 60.0, aliases or {}),
            max_body_bytes=MAX_BODY_BYTES,
            max_requests=max_requests,
            cors_origins=cors_origins,
            is_local=True,
            has_console=has_console,
        )
        server = HttpServer(app, "127.0.0.1", 0, tls=tls, drain_seconds=5)
        address = await server.start()
        watching = asyncio.create_task(server.watch_certificates())
        try:
            yield f"{'https' if tls else 'http'}://{address}"
        finally:
            watching.cancel()
            await server.drain()


class GatewayThread:
    """A gateway in a thread of its own, for blocking callers. Entering gives its URL."""

    def __init__(self, matcher: str, encoder: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._gateway = serve_gateway(matcher, encoder, **options)

    def __enter__(self) -> str:
        starting = asyncio.run_coroutine_threadsafe(self._gateway.__aenter__(), self._loop)
        return starting.result(timeout=60)

    def __exit__(self, *exception: object) -> None:
        ending = asyncio.run_coroutine_threadsafe(self._gateway.__aexit__(None, None, None), self._loop)
        ending.result(timeout=60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
