"""Metrics of the matcher."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from textmatch.runtime.metrics import SECONDS_BUCKETS

_CANDIDATE_BUCKETS = (0, 1, 5, 10, 25, 50, 100, 200, 500, 1_000)

MATCH_STAGE_SECONDS = Histogram(
    "textmatch_match_stage_seconds",
    "Time of each stage of a Match: encode, recall, classify, read, rerank, total.",
    ["stage"],
    buckets=SECONDS_BUCKETS,
)
CANDIDATES = Histogram(
    "textmatch_match_candidates",
    "Candidates recalled for a query.",
    buckets=_CANDIDATE_BUCKETS,
)
SCORED_CANDIDATES = Histogram(
    "textmatch_match_scored_candidates",
    "Candidates that the cross-encoder scored for a query.",
    buckets=_CANDIDATE_BUCKETS,
)
TOP_SCORE = Histogram(
    "textmatch_match_top_score",
    "Score of the best match of a query.",
    buckets=tuple(tenth / 10 for tenth in range(1, 11)),
)
DEGRADED_TOTAL = Counter(
    "textmatch_match_degraded_total",
    "Matches with a part left out, by what it was: scoring late, refused, unavailable; encode_late.",
    ["reason"],
)
SHARED_TOTAL = Counter(
    "textmatch_match_shared_total",
    "Matches answered by an identical one that was running.",
)
HEDGED_TOTAL = Counter(
    "textmatch_match_hedged_total",
    "Queries that a second encoder was asked to embed, because the first was slow.",
)
EMBEDDING_CACHE_TOTAL = Counter(
    "textmatch_match_embedding_cache_total",
    "Look-ups of a query's embedding, by result: hit, miss.",
    ["result"],
)
EMBEDDING_CACHE_ENTRIES = Gauge(
    "textmatch_match_embedding_cache_entries",
    "Embeddings of queries that are kept.",
)
INGEST_HELD_SECONDS = Histogram(
    "textmatch_ingest_held_seconds",
    "Time for which requests of IngestDocuments were held because the queue was full; only those held.",
    buckets=(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
