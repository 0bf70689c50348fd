#!/usr/bin/env -S python3 -P
"""Stands in for the binary of a real Qdrant: the embedded server behind its settings, /readyz and API key.

    PATH=.venv/bin:$PATH TEXTMATCH_QDRANT_BIN=$PWD/tests/support/qdrant_stand_in.py pytest tests/e2e

It does not replicate: the nodes of a cluster lead to the server of the first one.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from standalone.qdrant_edge.__main__ import main
from standalone.stack import grpc_serving
from tests.support.qdrant import join_streams

HOST = os.environ["QDRANT__SERVICE__HOST"]
GRPC_PORT = int(os.environ["QDRANT__SERVICE__GRPC_PORT"])
HTTP_PORT = int(os.environ["QDRANT__SERVICE__HTTP_PORT"])
API_KEY = os.environ.get("QDRANT__SERVICE__API_KEY", "")
IS_STRICT = os.environ.get("QDRANT__STORAGE__COLLECTION__STRICT_MODE__ENABLED") == "true"
PEER_PORT = int(os.environ.get("QDRANT__CLUSTER__P2P__PORT", "0"))
STORAGE = os.environ["QDRANT__STORAGE__STORAGE_PATH"]


class Readiness(BaseHTTPRequestHandler):
    """Answers /readyz."""

    def do_GET(self) -> None:
        is_ready = self.path == "/readyz" and asyncio.run(grpc_serving(f"{HOST}:{GRPC_PORT}")())
        self.send_response(200 if is_ready else 503)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """It is asked several times a second."""


class KeyCheck(grpc.aio.ServerInterceptor):
    """Refuses calls without the key, as a real server does. Health is for all."""

    async def intercept_service(
        self, continuation: Callable[..., Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        if "Health" in details.method or ("api-key", API_KEY) in details.invocation_metadata:
            return await continuation(details)

        async def refuse(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Must provide an API key")

        return grpc.unary_unary_rpc_method_handler(refuse)


async def forward(port: int, target: int) -> None:
    """Connections to a port lead to another one."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                await join_streams((reader, writer), await asyncio.open_connection(HOST, target))
        finally:
            writer.close()

    server = await asyncio.start_server(accept, HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uri")
    parser.add_argument("--bootstrap")
    arguments = parser.parse_args()
    readiness = ThreadingHTTPServer((HOST, HTTP_PORT), Readiness)
    threading.Thread(target=readiness.serve_forever, daemon=True).start()
    if arguments.bootstrap:
        asyncio.run(forward(GRPC_PORT, urlsplit(arguments.bootstrap).port or 0))
    if PEER_PORT:
        threading.Thread(target=lambda: asyncio.run(forward(PEER_PORT, GRPC_PORT)), daemon=True).start()
    if API_KEY:
        grpc.aio.server = functools.partial(grpc.aio.server, interceptors=[KeyCheck()])
    options = ["--host", HOST, "--port", str(GRPC_PORT), "--data-dir", STORAGE]
    sys.argv = [sys.argv[0], *options, *(["--strict"] if IS_STRICT else [])]
    sys.exit(main())
