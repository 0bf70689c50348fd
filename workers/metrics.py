"""Metrics of the worker."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from textmatch.runtime.metrics import SECONDS_BUCKETS

DOCUMENTS_TOTAL = Counter(
    "textmatch_documents_total",
    "Documents settled: indexed, unchanged_text (written without encoding again), stale, deleted, failed,"
    " dropped (the collection was deleted).",
    ["result"],
)
ACCEPT_TO_SEARCHABLE_SECONDS = Histogram(
    "textmatch_ingest_accept_to_searchable_seconds",
    "Time from the acceptance of a document until a search can find it.",
    buckets=(0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0),
)
TASK_SECONDS = Histogram(
    "textmatch_worker_task_seconds",
    "Time a worker held a message, including the wait for retries.",
    buckets=SECONDS_BUCKETS,
)
PASSAGES_TOTAL = Counter(
    "textmatch_worker_passages_total",
    "Passages written, one or more of each document.",
)
TRUNCATED_TOTAL = Counter(
    "textmatch_worker_truncated_documents_total",
    "Documents written of which the model has not read the end, because passages are turned off.",
)
RETRIES_TOTAL = Counter(
    "textmatch_worker_retries_total",
    "Batches retried, by the reason of the error.",
    ["reason"],
)
OPERATOR_NEEDED = Gauge(
    "textmatch_worker_operator_needed",
    "1 while documents wait for an operator: a refused key, a full disk, MODEL_MISMATCH.",
    ["collection", "reason"],
)
ABANDONED_COLLECTIONS = Gauge(
    "textmatch_worker_abandoned_collections",
    "1 while a dual-write target gets no writes, because its model is not served.",
    ["collection"],
)
READY = Gauge("textmatch_worker_ready", "1 while the worker is connected and takes messages.")
STALLED = Gauge("textmatch_worker_stalled", "1 while messages wait and the worker, though free, takes none.")
