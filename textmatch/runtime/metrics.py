"""Prometheus metrics that every process has, and their HTTP endpoint."""

from __future__ import annotations

from prometheus_client import Counter, Histogram, start_http_server

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


def serve_metrics(host: str, port: int) -> None:
    """Serve `/metrics` in a background thread until the process ends.

    Raises:
        OSError: the port is taken.
    """
    start_http_server(port, addr=host)
