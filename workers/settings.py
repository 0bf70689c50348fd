"""Settings of the worker."""

from __future__ import annotations

import os
from dataclasses import dataclass

from textmatch.queue.app import DEFAULT_SWEEP_SECONDS, DEFAULT_VISIBILITY_TIMEOUT_SECONDS
from textmatch.runtime.config import load, setting


@dataclass(frozen=True)
class WorkerSettings:
    """Read once at start."""

    host: str = setting("TEXTMATCH_WORKER_HOST", "127.0.0.1", "Address `/metrics` listens on.")
    metrics_port: int = setting(
        "TEXTMATCH_WORKER_METRICS_PORT", 9103, "Port of `/metrics`; 0 turns it off.", minimum=0
    )
    redis_url: str = setting(
        "TEXTMATCH_REDIS_URL", "redis://127.0.0.1:6379/0", "Redis: queue and ingest state.", is_secret=True
    )
    encoder_target: str = setting(
        "TEXTMATCH_ENCODER_TARGET", "127.0.0.1:50051", "The encoder as gRPC names it; `dns:///` balances."
    )
    qdrant_url: str = setting("TEXTMATCH_QDRANT_URL", "http://127.0.0.1:6334", "Qdrant's gRPC port as a URL.")
    qdrant_api_key: str = setting("TEXTMATCH_QDRANT_API_KEY", "", "API key for Qdrant.", is_secret=True)
    collection_alias: str = setting(
        "TEXTMATCH_COLLECTION_ALIAS", "textmatch", "Alias of the collection in use in Qdrant."
    )
    concurrency: int = setting(
        "TEXTMATCH_WORKER_CONCURRENCY", 2, "Messages worked on at a time; each is one batch.", minimum=1
    )
    encode_timeout_seconds: float = setting(
        "TEXTMATCH_WORKER_ENCODE_TIMEOUT_SECONDS",
        60.0,
        "Time for the encoder to embed one batch in the bulk lane.",
        minimum=0.001,
    )
    visibility_timeout_seconds: float = setting(
        "TEXTMATCH_WORKER_VISIBILITY_TIMEOUT_SECONDS",
        DEFAULT_VISIBILITY_TIMEOUT_SECONDS,
        "A message whose worker has been silent for so long is given to another worker.",
        minimum=1,
    )
    sweep_seconds: float = setting(
        "TEXTMATCH_WORKER_SWEEP_SECONDS",
        DEFAULT_SWEEP_SECONDS,
        "How often to look for messages of silent workers.",
        minimum=0.1,
    )
    drain_seconds: float = setting(
        "TEXTMATCH_DRAIN_SECONDS", 20.0, "Time for running calls to end after SIGTERM.", minimum=0
    )
    log_level: str = setting(
        "TEXTMATCH_LOG_LEVEL",
        "INFO",
        "Least severe level logged.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
    )
    log_style: str = setting("TEXTMATCH_LOG_STYLE", "json", "Form of log lines.", choices=("json", "text"))


def from_environment() -> WorkerSettings:
    """Read `TEXTMATCH_*`.

    Raises:
        InvalidInput: naming every variable with a bad value.
    """
    return load(WorkerSettings, os.environ)
