"""Settings of the matcher."""

from __future__ import annotations

import os
from dataclasses import dataclass

from textmatch.runtime.config import load, setting


@dataclass(frozen=True)
class MatcherSettings:
    """Read once at start."""

    host: str = setting("TEXTMATCH_MATCHER_HOST", "127.0.0.1", "Address the gRPC server listens on.")
    port: int = setting("TEXTMATCH_MATCHER_PORT", 50052, "Port of the gRPC server.", minimum=0)
    metrics_port: int = setting(
        "TEXTMATCH_MATCHER_METRICS_PORT", 9102, "Port of `/metrics`; 0 turns it off.", minimum=0
    )
    encoder_target: str = setting(
        "TEXTMATCH_ENCODER_TARGET", "127.0.0.1:50051", "The encoder as gRPC names it; `dns:///` balances."
    )
    qdrant_url: str = setting("TEXTMATCH_QDRANT_URL", "http://127.0.0.1:6334", "Qdrant's gRPC port as a URL.")
    qdrant_api_key: str = setting("TEXTMATCH_QDRANT_API_KEY", "", "API key for Qdrant.", is_secret=True)
    redis_url: str = setting(
        "TEXTMATCH_REDIS_URL", "redis://127.0.0.1:6379/0", "Redis: queue and ingest state.", is_secret=True
    )
    collection_alias: str = setting(
        "TEXTMATCH_COLLECTION_ALIAS", "textmatch", "Alias of the collection in use in Qdrant."
    )
    rerank_weight: float = setting(
        "TEXTMATCH_RERANK_WEIGHT",
        0.2,
        "Share of the cross-encoder in the score of a match; the rest is the cosine.",
        minimum=0,
        maximum=1,
    )
    match_timeout_seconds: float = setting(
        "TEXTMATCH_MATCH_TIMEOUT_SECONDS",
        10.0,
        "Time for a Match whose caller set no deadline.",
        minimum=0.001,
    )
    batch_match_concurrency: int = setting(
        "TEXTMATCH_BATCH_MATCH_CONCURRENCY", 8, "Queries of one BatchMatch answered at a time.", minimum=1
    )
    tombstone_seconds: int = setting(
        "TEXTMATCH_TOMBSTONE_SECONDS",
        7 * 24 * 3600,
        "How long a delete is remembered; longer than any write can wait in the queue.",
        minimum=60,
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


def from_environment() -> MatcherSettings:
    """Read `TEXTMATCH_*`.

    Raises:
        InvalidInput: naming every variable with a bad value.
    """
    return load(MatcherSettings, os.environ)
