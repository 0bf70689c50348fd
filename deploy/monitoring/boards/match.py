"""How queries are answered."""

from __future__ import annotations

from deploy.monitoring.panels import Dashboard, Kind, Panel, Query, Unit
from deploy.monitoring.queries import ONLY_MATCH, WHERE, heatmap, mean, quantiles, rate

MATCH = Dashboard(
    "textmatch-match",
    "textmatch · match",
    "Where the time of a query goes, how often it is not scored, and how good matches are.",
    (
        Panel(
            "Calls",
            "By method and code.",
            (
                Query(
                    rate("textmatch_rpc_total", "method, code", 'service="textmatch.v1.MatcherService"'),
                    "{{method}} {{code}}",
                ),
            ),
            Unit.PER_SECOND,
        ),
        Panel("Latency", "Of Match.", quantiles("textmatch_rpc_seconds", where=ONLY_MATCH), Unit.SECONDS),
        Panel(
            "Stages, p95",
            "Encode the query, recall candidates, rerank them.",
            (
                Query(
                    "histogram_quantile(0.95, "
                    + rate("textmatch_match_stage_seconds_bucket", "le, stage")
                    + ")",
                    "{{stage}}",
                ),
            ),
            Unit.SECONDS,
        ),
        Panel(
            "Stages, mean",
            "Stacked they make a query.",
            (
                Query(
                    rate("textmatch_match_stage_seconds_sum", "stage", 'stage!="total"')
                    + " / "
                    + rate("textmatch_match_stage_seconds_count", "stage", 'stage!="total"'),
                    "{{stage}}",
                ),
            ),
            Unit.SECONDS,
        ),
        Panel(
            "Degraded",
            "Matches with a part left out, by what was late, refused or not there.",
            (Query(rate("textmatch_match_degraded_total", "reason"), "{{reason}}"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Candidates",
            "Recalled for a query, and scored by the cross-encoder, mean.",
            (
                Query(mean("textmatch_match_candidates"), "recalled"),
                Query(mean("textmatch_match_scored_candidates"), "scored"),
            ),
        ),
        Panel(
            "Work saved",
            "Embeddings of queries found in the cache or not, and queries answered by an identical one.",
            (
                Query(rate("textmatch_match_embedding_cache_total", "result"), "embedding {{result}}"),
                Query(rate("textmatch_match_shared_total"), "shared"),
            ),
            Unit.PER_SECOND,
        ),
        Panel(
            "Embeddings kept",
            "Entries of the matchers' caches.",
            (
                Query(
                    f"textmatch_match_embedding_cache_entries{{{WHERE}}}",
                    "{{instance}}",
                ),
            ),
        ),
        Panel(
            "Score of the best match",
            "A shift means other queries, documents or another model.",
            heatmap("textmatch_match_top_score"),
            kind=Kind.HEATMAP,
            width=12,
        ),
        Panel(
            "Score of the best match, quantiles",
            "Median and tails.",
            quantiles("textmatch_match_top_score", quantiles=(0.1, 0.5, 0.9)),
            width=12,
        ),
        Panel(
            "Memory of the process",
            "Resident.",
            (
                Query(
                    f"process_resident_memory_bytes{{{WHERE}}}"
                    " and on (instance) textmatch_match_candidates_count",
                    "{{instance}}",
                ),
            ),
            Unit.BYTES,
        ),
        Panel(
            "Processor",
            "Cores that matchers use.",
            (
                Query(
                    f"rate(process_cpu_seconds_total{{{WHERE}}}[$__rate_interval]) "
                    "and on (instance) textmatch_match_candidates_count",
                    "{{instance}}",
                ),
            ),
        ),
    ),
)
