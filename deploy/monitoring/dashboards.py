"""Is it well?

What the encoders do with their time.

From accepted to searchable.

How queries are answered.
"""

from __future__ import annotations

from deploy.monitoring.grafana import (
    NEEDS_CUDA,
    NEEDS_PADDING,
    ONLY_MATCH,
    WHERE,
    Dashboard,
    Kind,
    Panel,
    Query,
    Unit,
    gauge,
    heatmap,
    mean,
    quantiles,
    rate,
)

OVERVIEW = Dashboard(
    "textmatch-overview",
    "textmatch · overview",
    "Is it well? Start here; the other dashboards say why not.",
    (
        Panel(
            "Matches",
            "Queries a second.",
            (Query(rate("textmatch_rpc_total", where=ONLY_MATCH)),),
            Unit.PER_SECOND,
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Match p95",
            "95 of 100 queries are faster.",
            quantiles("textmatch_rpc_seconds", where=ONLY_MATCH, quantiles=(0.95,)),
            Unit.SECONDS,
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Waiting documents",
            "Accepted and not searchable yet.",
            (Query(gauge("textmatch_ingest_queue_documents")),),
            Unit.NONE,
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Oldest waiting",
            "Age of the oldest document that waits.",
            (Query(gauge("textmatch_ingest_oldest_seconds")),),
            Unit.SECONDS,
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Dead letters",
            "Documents that could not be indexed: textmatch dead-letters list.",
            (Query(gauge("textmatch_dead_letters")),),
            Unit.NONE,
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Workers ready",
            "Workers that are connected and take messages.",
            (Query(f"sum (textmatch_worker_ready{{{WHERE}}})"),),
            Unit.NONE,
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Calls",
            "By method.",
            (Query(rate("textmatch_rpc_total", "method"), "{{method}}"),),
            Unit.PER_SECOND,
            width=12,
        ),
        Panel(
            "Calls by code",
            "OK and what is not.",
            (Query(rate("textmatch_rpc_total", "code"), "{{code}}"),),
            Unit.PER_SECOND,
            width=12,
        ),
        Panel(
            "Match latency",
            "From the first byte of a call to the last of its answer.",
            quantiles("textmatch_rpc_seconds", where=ONLY_MATCH),
            Unit.SECONDS,
            width=12,
        ),
        Panel(
            "Time to searchable",
            "From the acceptance of a document until a search can find it.",
            quantiles("textmatch_ingest_accept_to_searchable_seconds"),
            Unit.SECONDS,
            width=12,
        ),
        Panel(
            "Error budget burnt, 1 h",
            "At 1 the budget of 30 days lasts 30 days; above 14 somebody is paged.",
            (Query(f"textmatch:slo_burn_rate1h{{{WHERE}}}", "{{slo}}"),),
            width=12,
        ),
        Panel(
            "Models",
            "What the encoders serve.",
            (
                Query(
                    f"count by (name, model_id, kind, engine, dtype, device) "
                    f"(textmatch_encoder_model_info{{{WHERE}}})"
                ),
            ),
            kind=Kind.TABLE,
            width=12,
        ),
    ),
)


ENCODER = Dashboard(
    "textmatch-encoder",
    "textmatch · encoder",
    "What the encoders do with their time: stages, batches, lanes, refusals, device.",
    (
        Panel(
            "Tokens computed",
            "By lane, without padding.",
            (Query(rate("textmatch_encoder_tokens_total", "lane"), "{{lane}}"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Tokens waiting",
            "By lane. Encoders are scaled on this.",
            (Query(f"sum by (lane) (textmatch_encoder_queue_tokens{{{WHERE}}})", "{{lane}}"),),
        ),
        Panel(
            "Texts waiting",
            "By lane.",
            (Query(f"sum by (lane) (textmatch_encoder_queue_texts{{{WHERE}}})", "{{lane}}"),),
        ),
        Panel(
            "Stages, p95",
            "Tokenise and queue of a call, forward of a batch, serialise of an answer.",
            (
                Query(
                    "histogram_quantile(0.95, "
                    + rate("textmatch_encoder_stage_seconds_bucket", "le, stage")
                    + ")",
                    "{{stage}}",
                ),
            ),
            Unit.SECONDS,
        ),
        Panel(
            "Time in forward passes",
            "Share of the time; 1 is an engine that never waits, for each encoder.",
            (
                Query(
                    f'sum by (instance) (rate(textmatch_encoder_stage_seconds_sum{{{WHERE},stage="forward"}}'
                    "[$__rate_interval]))",
                    "{{instance}}",
                ),
            ),
            Unit.SHARE,
        ),
        Panel(
            "Latency of calls",
            "By method, p95.",
            (
                Query(
                    "histogram_quantile(0.95, "
                    + rate(
                        "textmatch_rpc_seconds_bucket", "le, method", 'service="textmatch.v1.EncoderService"'
                    )
                    + ")",
                    "{{method}}",
                ),
            ),
            Unit.SECONDS,
        ),
        Panel(
            "Texts in a batch", "Distribution.", heatmap("textmatch_encoder_batch_texts"), kind=Kind.HEATMAP
        ),
        Panel(
            "Tokens in a batch",
            "Distribution.",
            heatmap("textmatch_encoder_batch_tokens"),
            kind=Kind.HEATMAP,
        ),
        Panel(
            "Mean batch",
            "Texts and tokens in a forward pass.",
            (
                Query(mean("textmatch_encoder_batch_texts"), "texts"),
                Query(mean("textmatch_encoder_batch_tokens"), "tokens"),
            ),
        ),
        Panel(
            "Padding",
            "Tokens computed for each token of a text; packed models have no series.",
            (Query(mean("textmatch_encoder_padding_ratio"), "mean"),),
            needs=NEEDS_PADDING,
        ),
        Panel(
            "Refused calls",
            "By reason: more work than can be done in time.",
            (Query(rate("textmatch_encoder_rejections_total", "reason"), "{{reason}}"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Dropped calls",
            "Cancelled by the caller, or too late, before they cost anything.",
            (Query(rate("textmatch_encoder_dropped_total", "reason"), "{{reason}}"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Texts cut off or failed",
            "Longer than the model reads; or that it failed on.",
            (
                Query(rate("textmatch_encoder_truncated_total"), "cut off"),
                Query(rate("textmatch_encoder_failed_texts_total"), "failed"),
            ),
            Unit.PER_SECOND,
        ),
        Panel(
            "Reloads",
            "Of the models, by result.",
            (Query(f"sum by (result) (textmatch_encoder_reloads_total{{{WHERE}}})", "{{result}}"),),
        ),
        Panel(
            "Device memory",
            "Of tensors on the GPU.",
            (Query(f"textmatch_encoder_device_memory_bytes{{{WHERE}}}", "{{instance}} {{device}}"),),
            Unit.BYTES,
            needs=NEEDS_CUDA,
        ),
        Panel(
            "Memory of the process",
            "Resident.",
            (
                Query(
                    f"process_resident_memory_bytes{{{WHERE}}}"
                    " and on (instance) textmatch_encoder_batch_texts_count",
                    "{{instance}}",
                ),
            ),
            Unit.BYTES,
        ),
    ),
)


INGEST = Dashboard(
    "textmatch-ingest",
    "textmatch · ingest",
    "From accepted to searchable: how much waits, how long, and what is in the way.",
    (
        Panel(
            "Documents settled",
            "By result.",
            (Query(rate("textmatch_documents_total", "result"), "{{result}}"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Waiting documents",
            "Accepted and not searchable yet.",
            (Query(gauge("textmatch_ingest_queue_documents"), "documents"),),
        ),
        Panel(
            "Oldest waiting",
            "Workers are scaled on this and on the number.",
            (Query(gauge("textmatch_ingest_oldest_seconds"), "age"),),
            Unit.SECONDS,
        ),
        Panel(
            "Time to searchable",
            "From acceptance until a search can find it.",
            quantiles("textmatch_ingest_accept_to_searchable_seconds"),
            Unit.SECONDS,
        ),
        Panel(
            "Time to searchable, distribution",
            "Documents a second by how long they took.",
            heatmap("textmatch_ingest_accept_to_searchable_seconds"),
            kind=Kind.HEATMAP,
        ),
        Panel(
            "Dead letters",
            "Should be none: textmatch dead-letters list.",
            (Query(gauge("textmatch_dead_letters"), "dead letters"),),
        ),
        Panel(
            "Time a worker held a message",
            "Waiting for retries included.",
            quantiles("textmatch_worker_task_seconds"),
            Unit.SECONDS,
        ),
        Panel(
            "Batches tried again",
            "By reason.",
            (Query(rate("textmatch_worker_retries_total", "reason"), "{{reason}}"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Workers",
            "That are connected and take messages.",
            (Query(f"sum (textmatch_worker_ready{{{WHERE}}})", "ready"),),
        ),
        Panel(
            "Somebody must act",
            "1 while nothing can be indexed, or a collection beside the one in use gets no writes.",
            (
                Query(gauge("textmatch_worker_operator_needed", "reason"), "{{reason}}"),
                Query(gauge("textmatch_worker_abandoned_collections"), "abandoned collection"),
            ),
        ),
        Panel(
            "Calls of IngestDocuments",
            "By code.",
            (Query(rate("textmatch_rpc_total", "code", 'method="IngestDocuments"'), "{{code}}"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Memory of the queue",
            "Of the messages in Redis.",
            (Query(gauge("textmatch_ingest_queue_bytes"), "bytes"),),
            Unit.BYTES,
        ),
        Panel(
            "Held callers",
            "Seconds a second that requests of IngestDocuments are held because the queue is full.",
            (Query(rate("textmatch_ingest_held_seconds_sum"), "held"),),
        ),
    ),
)


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


DASHBOARDS = (OVERVIEW, ENCODER, INGEST, MATCH)
