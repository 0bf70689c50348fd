"""Settings of the worker."""

from __future__ import annotations

from dataclasses import dataclass

from textmatch.queue.app import DEFAULT_SWEEP_SECONDS, DEFAULT_VISIBILITY_TIMEOUT_SECONDS
from textmatch.runtime.settings import StoreSettings, setting


@dataclass(frozen=True)
class WorkerSettings(StoreSettings):
    """Settings of the worker, read once at start."""

    host: str = setting("TEXTMATCH_WORKER_HOST", "127.0.0.1", "Address `/metrics` listens on.")
    metrics_port: int = setting(
        "TEXTMATCH_WORKER_METRICS_PORT", 9103, "Port of `/metrics`; 0 turns it off.", minimum=0
    )
    # Messages are prefetched per batch: see textmatch/queue/transport.py.
    concurrency: int = setting("TEXTMATCH_WORKER_CONCURRENCY", 2, "Batches in progress at a time.", minimum=1)
    encode_timeout_seconds: float = setting(
        "TEXTMATCH_WORKER_ENCODE_TIMEOUT_SECONDS",
        60.0,
        "Time for the encoder to embed one batch in the bulk lane.",
        minimum=0.001,
    )
    stall_seconds: float = setting(
        "TEXTMATCH_WORKER_STALL_SECONDS",
        60.0,
        "`/live` fails if messages wait and the worker, though free, has taken none for so long.",
        minimum=1,
    )
    visibility_timeout_seconds: float = setting(
        "TEXTMATCH_WORKER_VISIBILITY_TIMEOUT_SECONDS",
        DEFAULT_VISIBILITY_TIMEOUT_SECONDS,
        "A message whose worker has not renewed its lease for so long is given to another worker.",
        minimum=1,
    )
    sweep_seconds: float = setting(
        "TEXTMATCH_WORKER_SWEEP_SECONDS",
        DEFAULT_SWEEP_SECONDS,
        "How often to look for messages with expired leases.",
        minimum=0.1,
    )
