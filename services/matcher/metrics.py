"""Metrics of the matcher."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from textmatch.runtime.metrics import SECONDS_BUCKETS

MATCH_STAGE_SECONDS = Histogram(
    "textmatch_match_stage_seconds",
    "Time of each stage of a Match: encode, recall, rerank.",
    ["stage"],
    buckets=SECONDS_BUCKETS,
)
CANDIDATES = Histogram(
    "textmatch_match_candidates",
    "Candidates recalled for a query.",
    buckets=(0, 1, 5, 10, 25, 50, 100, 200, 500, 1_000),
)
TOP_SCORE = Histogram(
    "textmatch_match_top_score",
    "Score of the best match of a query.",
    buckets=tuple(tenth / 10 for tenth in range(1, 11)),
)
DEGRADED_TOTAL = Counter(
    "textmatch_match_degraded_total",
    "Matches answered in recall order, by what kept them from being scored: late, refused, unavailable.",
    ["reason"],
)
INGEST_HELD_SECONDS = Histogram(
    "textmatch_ingest_held_seconds",
    "Time for which requests of IngestDocuments were held because the queue was full; only those held.",
    buckets=(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
