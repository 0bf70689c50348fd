"""Settings of the matcher."""

from __future__ import annotations

from dataclasses import dataclass

from textmatch.runtime.settings import ServerSettings, StoreSettings, setting


@dataclass(frozen=True)
class MatcherSettings(StoreSettings, ServerSettings):
    """All settings, read once at start."""

    host: str = setting("TEXTMATCH_MATCHER_HOST", "127.0.0.1", "Address the gRPC server listens on.")
    port: int = setting("TEXTMATCH_MATCHER_PORT", 50052, "Port of the gRPC server.", minimum=0)
    metrics_port: int = setting(
        "TEXTMATCH_MATCHER_METRICS_PORT", 9102, "Port of `/metrics`; 0 turns it off.", minimum=0
    )
    rerank_depth: int = setting(
        "TEXTMATCH_RERANK_DEPTH",
        40,
        "Most candidates that the cross-encoder scores if a Match does not set `rerank_depth`.",
        minimum=1,
        maximum=1_000,
    )
    embedding_cache_bytes: int = setting(
        "TEXTMATCH_EMBEDDING_CACHE_BYTES",
        32 * 1024**2,
        "Size of the cache of query embeddings, some 20,000 of 384 components; 0 turns it off.",
        minimum=0,
    )
    match_timeout_seconds: float = setting(
        "TEXTMATCH_MATCH_TIMEOUT_SECONDS",
        10.0,
        "Time limit of a Match whose caller set no deadline.",
        minimum=0.001,
    )
    batch_match_concurrency: int = setting(
        "TEXTMATCH_BATCH_MATCH_CONCURRENCY",
        8,
        "Queries of one BatchMatch that are answered at the same time.",
        minimum=1,
    )
    max_queued_documents: int = setting(
        "TEXTMATCH_INGEST_MAX_QUEUED_DOCUMENTS",
        500_000,
        "Documents in the queue above which callers of IngestDocuments wait.",
        minimum=1,
    )
    max_queued_bytes: int = setting(
        "TEXTMATCH_INGEST_MAX_QUEUED_BYTES",
        1024**3,
        "Bytes in the queue above which callers of IngestDocuments wait.",
        minimum=1,
    )
    max_tombstone_bytes: int = setting(
        "TEXTMATCH_MAX_TOMBSTONE_BYTES",
        1024**3,
        "Memory of remembered deletes above which deletes are refused.",
        minimum=1,
    )
    max_dead_letter_bytes: int = setting(
        "TEXTMATCH_MAX_DEAD_LETTER_BYTES",
        256 * 1024**2,
        "Memory of dead letters above which IngestDocuments is refused.",
        minimum=1,
    )
    redis_replicas: int = setting(
        "TEXTMATCH_REDIS_REPLICAS",
        0,
        "How many replicas of Redis must have a write or delete before it is accepted.",
        minimum=0,
        maximum=10,
    )
