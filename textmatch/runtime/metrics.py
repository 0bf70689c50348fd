"""Prometheus metrics that every process has, and their HTTP endpoint."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import Counter, Histogram, make_wsgi_app

from textmatch.runtime.process import PortTaken

# Half a millisecond to half a minute, with about two buckets per doubling in the range of latency targets.
SECONDS_BUCKETS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip

RPC_SECONDS = Histogram(
    "textmatch_rpc_seconds",
    "Time from the first byte of a call to the last byte of its answer.",
    ["service", "method"],
    buckets=SECONDS_BUCKETS,
)
RPC_TOTAL = Counter(
    "textmatch_rpc_total",
    "Calls by method and gRPC code.",
    ["service", "method", "code"],
)

Check = Callable[[], str]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Ipv6Server(_Server):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name in the base class
        """Requests of Prometheus and kubelet are not logged."""


def serve_metrics(host: str, port: int, checks: Mapping[str, Check] | None = None) -> None:
    """Serve `/metrics` in a background thread until the process ends.

    Args:
        checks: further paths, such as "/ready". Each is asked what is wrong: "" is answered with 200, other
            text with 503.

    Raises:
        PortTaken: another process listens there.
    """
    server_class = _Ipv6Server if ":" in host else _Server
    try:
        server = make_server(host, port, _app(checks or {}), server_class, handler_class=_SilentHandler)
    except OSError as error:
        raise PortTaken(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def _app(checks: Mapping[str, Check]) -> Callable[..., Iterable[bytes]]:
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        check = checks.get(environ["PATH_INFO"])
        if check is None:
            return metrics(environ, start_response)
        problem = check()
        status = "503 Service Unavailable" if problem else "200 OK"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{problem or 'ok'}\n".encode()]

    return app
