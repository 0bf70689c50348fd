"""From accepted to searchable."""

from __future__ import annotations

from deploy.monitoring.panels import Dashboard, Kind, Panel, Query, Unit
from deploy.monitoring.queries import WHERE, gauge, heatmap, quantiles, rate

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
