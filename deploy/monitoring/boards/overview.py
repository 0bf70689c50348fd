"""Is it well?"""

from __future__ import annotations

from deploy.monitoring.panels import Dashboard, Kind, Panel, Query, Unit
from deploy.monitoring.queries import ONLY_MATCH, WHERE, gauge, quantiles, rate

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
