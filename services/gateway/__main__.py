"""`python -m services.gateway`: speaks JSON over HTTP for encoder and matcher."""

from __future__ import annotations

import logging
import sys
import threading

from services.gateway.app import create_app
from services.gateway.caller import Gateway
from services.gateway.metrics import READY
from services.gateway.server import HttpServer
from services.gateway.settings import GatewaySettings
from textmatch.client import AsyncTextMatchClient
from textmatch.runtime.metrics import serve_metrics
from textmatch.runtime.process import run_service, run_until_stopped, trim_heap

_log = logging.getLogger(__name__)


def main() -> int:
    """Run until SIGTERM, then drain running requests."""
    return run_service("gateway", GatewaySettings, _serve)


async def _serve(settings: GatewaySettings) -> None:
    aliases, tls = settings.aliases(), settings.server_tls()
    is_ready = threading.Event()
    READY.set_function(lambda: float(is_ready.is_set()))
    if settings.metrics_port:
        checks = {"/ready": lambda: "" if is_ready.is_set() else "the gateway does not accept requests"}
        serve_metrics(settings.host, settings.metrics_port, checks)
    client = AsyncTextMatchClient(
        settings.matcher_target,
        settings.encoder_target,
        timeout_seconds=settings.timeout_seconds,
        bulk_timeout_seconds=settings.bulk_timeout_seconds,
        # Callers send their own keys. An own one would be lent to everybody.
        api_key="",
        tls=settings.client_tls(),
    )
    app = create_app(
        Gateway(client, settings.bulk_timeout_seconds, aliases),
        max_body_bytes=settings.max_body_bytes,
        max_requests=settings.max_requests,
        cors_origins=settings.origins(),
        is_local=settings.is_local(),
        has_console=settings.console,
    )
    server = HttpServer(app, settings.host, settings.port, tls=tls, drain_seconds=settings.drain_seconds)
    address = await server.start()
    trim_heap()
    is_ready.set()
    _log.info("serving", extra={"address": address})
    try:
        await run_until_stopped(server.watch_certificates())
    finally:
        is_ready.clear()
        await server.drain()
        await client.close()


if __name__ == "__main__":
    sys.exit(main())
