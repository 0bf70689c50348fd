"""The HTTP server: one socket, TLS whose files may be replaced, a drain at the end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from textmatch.runtime.process import PortTaken
from textmatch.runtime.tls import LatestCertificates, ServerTls

_CHECK_SECONDS = 1.0
_START_POLL_SECONDS = 0.01
_BACKLOG = 1_024


class HttpServer:
    """Serves an ASGI application on one port.

    Args:
        tls: None: not encrypted.
        drain_seconds: time for running requests to end.

    Raises:
        InvalidInput: a file of `tls` cannot be used.
    """

    def __init__(
        self, app: ASGIApp, host: str, port: int, *, tls: ServerTls | None = None, drain_seconds: float = 20.0
    ) -> None:
        self._host, self._port = host, port
        certificates = LatestCertificates(tls, partial(_read_into, _new_context(tls))) if tls else None
        self._certificates = certificates
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
            ssl_context_factory=(lambda *_: certificates.first) if certificates else None,
        )
        self._server = _Server(config)
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; returns the address with the real port.

        Raises:
            PortTaken: another process listens there.
        """
        listener = self._listen()
        self._running = asyncio.create_task(self._server.serve([listener]))
        while not self._server.started:
            if self._running.done():
                await self._running
                raise PortTaken(f"the server on {self._host}:{self._port} ended at its start")
            await asyncio.sleep(_START_POLL_SECONDS)
        return f"{self._host}:{listener.getsockname()[1]}"

    async def watch_certificates(self) -> None:
        """Use files of `tls` that were replaced for new connections, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if self._certificates is not None:
                self._certificates.if_changed()

    async def drain(self) -> None:
        """Refuse new connections, let running requests end, then stop."""
        self._server.should_exit = True
        if self._running is not None:
            await self._running

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listener = socket.create_server((self._host, self._port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {self._host}:{self._port}; is the port in use? ({error.strerror})"
            ) from error
        # Connections inherit it; asyncio sets it only on sockets that it makes itself. Without it, the body
        # of an answer waits up to 40 ms, until the caller has acknowledged the head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, which drains the server."""
        yield


def _new_context(tls: ServerTls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read_into(context: ssl.SSLContext, tls: ServerTls) -> ssl.SSLContext:
    """New connections use the files, although uvicorn keeps its context."""
    tls.check()
    # Without a password, OpenSSL would prompt for one.
    context.load_cert_chain(tls.cert, tls.key, password="")
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)
    return context
