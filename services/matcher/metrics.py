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
    "Candidates found for a query.",
    buckets=_CANDIDATE_BUCKETS,
)
SELECTED_CANDIDATES = Histogram(
    "textmatch_match_selected_candidates",
    "Candidates of a query that the rerank rule selects for pair scores; 0: the cross-encoder is not asked.",
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
    "Degraded matches, by reason: scoring late, refused or unavailable; encode_late, recall_late.",
    ["collection", "reason"],
)
SHARED_TOTAL = Counter(
    "textmatch_match_shared_total",
    "Matches that joined an identical running match.",
    ["collection"],
)
EMBEDDING_CACHE_TOTAL = Counter(
    "textmatch_match_embedding_cache_total",
    "Look-ups in the cache of query embeddings, by result: hit, miss.",
    ["result"],
)
EMBEDDING_CACHE_ENTRIES = Gauge(
    "textmatch_match_embedding_cache_entries",
    "Query embeddings in the cache.",
)
INGEST_HELD_SECONDS = Histogram(
    "textmatch_ingest_held_seconds",
    "Time that requests of IngestDocuments waited because the queue was full. Others do not count.",
    buckets=(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
