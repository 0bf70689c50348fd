"""Metrics of the gateway."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from textmatch.runtime.metrics import SECONDS_BUCKETS

REQUEST_SECONDS = Histogram(
    "textmatch_gateway_request_seconds",
    "Time from the head of a request to the last byte of its answer.",
    ["method", "route"],
    buckets=SECONDS_BUCKETS,
)
REQUESTS_TOTAL = Counter(
    "textmatch_gateway_requests_total",
    "Requests by route and HTTP status; 499: the caller went away.",
    ["method", "route", "status"],
)
RUNNING_REQUESTS = Gauge("textmatch_gateway_running_requests", "Requests that are being answered.")
READY = Gauge("textmatch_gateway_ready", "1 while the gateway accepts requests.")
