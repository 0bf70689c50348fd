"""The four dashboards: overview, encoder, ingest, match."""

from __future__ import annotations

from deploy.monitoring.grafana import (
    NAMESPACE,
    NEEDS_CUDA,
    NEEDS_PADDING,
    ONLY_MATCH,
    Dashboard,
    Kind,
    Panel,
    PanelQuery,
    Unit,
    gauge,
    gauge_sum,
    mean,
    quantile,
    quantiles,
    rate,
)


def _lines(
    title: str,
    description: str,
    *queries: PanelQuery,
    unit: Unit = Unit.NONE,
    width: int = 8,
    needs: str = "",
) -> Panel:
    return Panel(title, description, queries, unit, width=width, needs=needs)


def _rates(title: str, description: str, metric: str, by: str, where: str = "", width: int = 8) -> Panel:
    """The rates of a counter, one line for each value of a label."""
    query = PanelQuery(rate(metric, by, where), f"{{{{{by}}}}}")
    return Panel(title, description, (query,), Unit.PER_SECOND, width=width)


def _number(title: str, description: str, query: PanelQuery, unit: Unit = Unit.NONE) -> Panel:
    return Panel(title, description, (query,), unit, Kind.NUMBER, width=4)


def _heatmap(title: str, description: str, metric: str, width: int = 8) -> Panel:
    """The buckets of a histogram over time."""
    query = PanelQuery(rate(f"{metric}_bucket", "le"), "{{le}}")
    return Panel(title, description, (query,), kind=Kind.HEATMAP, width=width)


def _process_memory(metric_of_process: str) -> Panel:
    memory = f"process_resident_memory_bytes{{{NAMESPACE}}} and on (instance) {metric_of_process}"
    return _lines(
        "Process memory", "Resident memory, by process.", PanelQuery(memory, "{{instance}}"), unit=Unit.BYTES
    )


OVERVIEW = Dashboard(
    "textmatch-overview",
    "textmatch · overview",
    "The state of the whole system. Start here; the other dashboards show the causes.",
    (
        _number(
            "Matches",
            "Match calls per second.",
            PanelQuery(rate("textmatch_rpc_total", where=ONLY_MATCH)),
            Unit.PER_SECOND,
        ),
        _number(
            "Match p95",
            "95 % of the Match calls are faster.",
            PanelQuery(quantile(0.95, "textmatch_rpc_seconds", where=ONLY_MATCH), "p95"),
            Unit.SECONDS,
        ),
        _number(
            "Waiting documents",
            "Documents that are accepted but not searchable yet.",
            PanelQuery(gauge_sum("textmatch_ingest_queue_documents")),
        ),
        _number(
            "Oldest waiting document",
            "Age of the oldest document that is not searchable yet.",
            PanelQuery(gauge("textmatch_ingest_oldest_seconds")),
            Unit.SECONDS,
        ),
        _number(
            "Dead letters",
            "Documents that could not be indexed; list them with: textmatch dead-letters list.",
            PanelQuery(gauge_sum("textmatch_dead_letters")),
        ),
        _number(
            "Workers ready",
            "Workers that are connected and take messages.",
            PanelQuery(f"sum (textmatch_worker_ready{{{NAMESPACE}}})"),
        ),
        _rates("Calls", "Calls by method.", "textmatch_rpc_total", "method", width=12),
        _rates("Calls by code", "Calls by gRPC status code.", "textmatch_rpc_total", "code", width=12),
        _lines(
            "Match latency",
            "From the first byte of a call to the last byte of its answer.",
            *quantiles("textmatch_rpc_seconds", where=ONLY_MATCH),
            unit=Unit.SECONDS,
            width=12,
        ),
        _lines(
            "Time to searchable",
            "From the acceptance of a document until a search can find it.",
            *quantiles("textmatch_ingest_accept_to_searchable_seconds"),
            unit=Unit.SECONDS,
            width=12,
        ),
        _lines(
            "Error budget burn rate, 1 h",
            "At 1 the budget of 30 days lasts 30 days; above 14.4 an alert pages.",
            PanelQuery(f"textmatch:slo_burn_rate1h{{{NAMESPACE}}}", "{{slo}}"),
            width=12,
        ),
        _rates(
            "Gateway requests",
            "Requests over HTTP by status; 499: the caller went away.",
            "textmatch_gateway_requests_total",
            "status",
            width=12,
        ),
        _lines(
            "Gateway latency",
            "From the head of a request to the last byte of its answer, without uploads.",
            *quantiles(
                "textmatch_gateway_request_seconds", where='route!="/v1/collections/{collection}/documents"'
            ),
            unit=Unit.SECONDS,
            width=12,
        ),
        Panel(
            "Models",
            "The models that the encoders serve.",
            (
                PanelQuery(
                    "count by (name, model_id, kind, engine, dtype, device) "
                    f"(textmatch_encoder_model_info{{{NAMESPACE}}})"
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
    "How the encoders spend their time: stages, batches, lanes, refusals, device.",
    (
        _rates(
            "Tokens computed", "Tokens by lane, without padding.", "textmatch_encoder_tokens_total", "lane"
        ),
        _lines(
            "Tokens waiting",
            "Queued tokens by lane. Encoders are scaled on this.",
            PanelQuery(f"sum by (lane) (textmatch_encoder_queue_tokens{{{NAMESPACE}}})", "{{lane}}"),
        ),
        _lines(
            "Texts waiting",
            "Queued texts by lane.",
            PanelQuery(f"sum by (lane) (textmatch_encoder_queue_texts{{{NAMESPACE}}})", "{{lane}}"),
        ),
        _lines(
            "Stages, p95",
            "Tokenise and queue per call, forward per batch, serialise per answer.",
            PanelQuery(quantile(0.95, "textmatch_encoder_stage_seconds", "stage"), "{{stage}}"),
            unit=Unit.SECONDS,
        ),
        _lines(
            "Time in forward passes",
            "Share of the time, by encoder; 1 is an engine that is never idle.",
            PanelQuery(
                f'sum by (instance) (rate(textmatch_encoder_stage_seconds_sum{{{NAMESPACE},stage="forward"}}'
                "[$__rate_interval]))",
                "{{instance}}",
            ),
            unit=Unit.SHARE,
        ),
        _lines(
            "Call latency, p95",
            "Latency by method.",
            PanelQuery(
                quantile(0.95, "textmatch_rpc_seconds", "method", 'service="textmatch.v1.EncoderService"'),
                "{{method}}",
            ),
            unit=Unit.SECONDS,
        ),
        _heatmap("Texts in a batch", "Batches by number of texts.", "textmatch_encoder_batch_texts"),
        _heatmap("Tokens in a batch", "Batches by number of tokens.", "textmatch_encoder_batch_tokens"),
        _lines(
            "Mean batch",
            "Texts and tokens in a forward pass.",
            PanelQuery(mean("textmatch_encoder_batch_texts"), "texts"),
            PanelQuery(mean("textmatch_encoder_batch_tokens"), "tokens"),
        ),
        _lines(
            "Padding",
            "Tokens computed for each token of a text; packed models have no series.",
            PanelQuery(mean("textmatch_encoder_padding_ratio"), "mean"),
            needs=NEEDS_PADDING,
        ),
        _rates(
            "Refused calls",
            "Calls refused because of overload, by reason.",
            "textmatch_encoder_rejections_total",
            "reason",
        ),
        _rates(
            "Dropped calls",
            "Calls that were cancelled or late before they were computed.",
            "textmatch_encoder_dropped_total",
            "reason",
        ),
        _lines(
            "Texts truncated or failed",
            "Texts longer than the model reads, and texts that the model failed on.",
            PanelQuery(rate("textmatch_encoder_truncated_total"), "truncated"),
            PanelQuery(rate("textmatch_encoder_failed_texts_total"), "failed"),
            unit=Unit.PER_SECOND,
        ),
        _lines(
            "Reloads",
            "Reloads of the models, by result.",
            PanelQuery(f"sum by (result) (textmatch_encoder_reloads_total{{{NAMESPACE}}})", "{{result}}"),
        ),
        _lines(
            "Device memory",
            "Memory of tensors on the GPU.",
            PanelQuery(f"textmatch_encoder_device_memory_bytes{{{NAMESPACE}}}", "{{instance}} {{device}}"),
            unit=Unit.BYTES,
            needs=NEEDS_CUDA,
        ),
        _process_memory("textmatch_encoder_batch_texts_count"),
    ),
)


INGEST = Dashboard(
    "textmatch-ingest",
    "textmatch · ingest",
    "From accepted to searchable: how many documents wait, how long, and why.",
    (
        _rates("Documents settled", "Documents by result.", "textmatch_documents_total", "result"),
        _lines(
            "Waiting documents",
            "Documents that are accepted but not searchable yet.",
            PanelQuery(gauge("textmatch_ingest_queue_documents", "collection"), "{{collection}}"),
        ),
        _lines(
            "Oldest waiting document",
            "Workers are scaled on this age and on the number of waiting documents.",
            PanelQuery(gauge("textmatch_ingest_oldest_seconds", "collection"), "{{collection}}"),
            unit=Unit.SECONDS,
        ),
        _lines(
            "Time to searchable",
            "From the acceptance of a document until a search can find it.",
            *quantiles("textmatch_ingest_accept_to_searchable_seconds"),
            unit=Unit.SECONDS,
        ),
        _heatmap(
            "Time to searchable, distribution",
            "Documents per second, by time to searchable.",
            "textmatch_ingest_accept_to_searchable_seconds",
        ),
        _lines(
            "Dead letters",
            "Normally 0; textmatch dead-letters list shows them. Without a name: unreadable messages.",
            PanelQuery(gauge("textmatch_dead_letters", "collection"), "{{collection}}"),
        ),
        _lines(
            "Task time",
            "Time that a worker held a message, including waits for retries.",
            *quantiles("textmatch_worker_task_seconds"),
            unit=Unit.SECONDS,
        ),
        _rates(
            "Retried batches",
            "Batches that are tried again, by reason.",
            "textmatch_worker_retries_total",
            "reason",
        ),
        _lines(
            "Workers",
            "Workers that are connected and take messages.",
            PanelQuery(f"sum (textmatch_worker_ready{{{NAMESPACE}}})", "ready"),
        ),
        _lines(
            "Operator needed",
            "1 while nothing can be indexed, or while a collection that is not in use gets no writes.",
            PanelQuery(
                gauge("textmatch_worker_operator_needed", "collection, reason"), "{{collection}} {{reason}}"
            ),
            PanelQuery(
                gauge("textmatch_worker_abandoned_collections", "collection"), "{{collection}} abandoned"
            ),
        ),
        _rates(
            "IngestDocuments calls",
            "Calls by gRPC status code.",
            "textmatch_rpc_total",
            "code",
            'method="IngestDocuments"',
        ),
        _lines(
            "Queue memory",
            "Memory of the messages in Redis.",
            PanelQuery(gauge("textmatch_ingest_queue_bytes"), "bytes"),
            unit=Unit.BYTES,
        ),
        _lines(
            "Held requests",
            "Seconds per second that IngestDocuments requests wait because the queue is full.",
            PanelQuery(rate("textmatch_ingest_held_seconds_sum"), "held"),
        ),
    ),
)


_STAGES = 'stage!="total"'

MATCH = Dashboard(
    "textmatch-match",
    "textmatch · match",
    "Where the time of a query goes, how often answers are degraded, and how matches score.",
    (
        _lines(
            "Calls",
            "Calls by method and gRPC status code.",
            PanelQuery(
                rate("textmatch_rpc_total", "method, code", 'service="textmatch.v1.MatcherService"'),
                "{{method}} {{code}}",
            ),
            unit=Unit.PER_SECOND,
        ),
        _lines(
            "Latency",
            "Latency of Match.",
            *quantiles("textmatch_rpc_seconds", where=ONLY_MATCH),
            unit=Unit.SECONDS,
        ),
        _lines(
            "Stages, p95",
            "Encode the query, recall candidates, rerank them.",
            PanelQuery(quantile(0.95, "textmatch_match_stage_seconds", "stage"), "{{stage}}"),
            unit=Unit.SECONDS,
        ),
        _lines(
            "Stages, mean",
            "Mean time of each stage; together they are the time of a query.",
            PanelQuery(
                f"{rate('textmatch_match_stage_seconds_sum', 'stage', _STAGES)}"
                f" / {rate('textmatch_match_stage_seconds_count', 'stage', _STAGES)}",
                "{{stage}}",
            ),
            unit=Unit.SECONDS,
        ),
        _rates(
            "Degraded matches",
            "Incomplete answers, by the stage that was late, refused or unavailable.",
            "textmatch_match_degraded_total",
            "reason",
        ),
        _lines(
            "Candidates",
            "Mean number of candidates of a query: recalled, selected for pair scores, scored.",
            PanelQuery(mean("textmatch_match_candidates"), "recalled"),
            PanelQuery(mean("textmatch_match_selected_candidates"), "selected"),
            PanelQuery(mean("textmatch_match_scored_candidates"), "scored"),
        ),
        _lines(
            "Work saved",
            "Query embeddings by cache result, and queries that joined an identical running query.",
            PanelQuery(rate("textmatch_match_embedding_cache_total", "result"), "embedding {{result}}"),
            PanelQuery(rate("textmatch_match_shared_total"), "shared"),
            unit=Unit.PER_SECOND,
        ),
        _lines(
            "Cached embeddings",
            "Entries of the matchers' embedding caches.",
            PanelQuery(f"textmatch_match_embedding_cache_entries{{{NAMESPACE}}}", "{{instance}}"),
        ),
        _heatmap(
            "Score of the best match",
            "A shift means that the queries, the documents or the model changed.",
            "textmatch_match_top_score",
            width=12,
        ),
        _lines(
            "Score of the best match, quantiles",
            "Median and tails.",
            *quantiles("textmatch_match_top_score", shares=(0.1, 0.5, 0.9)),
            width=12,
        ),
        _process_memory("textmatch_match_candidates_count"),
        _lines(
            "CPU",
            "Cores that matchers use.",
            PanelQuery(
                f"rate(process_cpu_seconds_total{{{NAMESPACE}}}[$__rate_interval]) "
                "and on (instance) textmatch_match_candidates_count",
                "{{instance}}",
            ),
        ),
    ),
)


DASHBOARDS = (OVERVIEW, ENCODER, INGEST, MATCH)
