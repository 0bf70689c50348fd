"""Recording rules and alerts for Prometheus.

Objectives alert on the burn rate of their error budget over a long window (the budget is at risk) and a short
one (the problem is still there), as in chapter 5 of Google's SRE workbook.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

RUNBOOK = "docs/runbook.md"

_WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_BAD_CODES = "INTERNAL|UNKNOWN|DATA_LOSS|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|FAILED_PRECONDITION"
# Long window, short window, times the sustainable rate, severity.
_BURN_RATES = (
    ("1h", "5m", 14.4, "page"),
    ("6h", "30m", 6.0, "page"),
    ("1d", "2h", 3.0, "ticket"),
    ("3d", "6h", 1.0, "ticket"),
)


@dataclass(frozen=True)
class Objective:
    """A share of events that must be good, over 30 days.

    Attributes:
        bad, total: PromQL with `%s` for the window; both by namespace.
    """

    slo: str
    alert: str
    target: float
    bad: str
    total: str
    summary: str


def _slow(metric: str, bound: str, where: str = "") -> str:
    """The rate of events above one bound of a histogram."""
    fast = where + ("," if where else "") + f'le="{bound}"'
    return (
        f"sum by (namespace) (rate({metric}_count{{{where}}}[%s]))"
        f" - sum by (namespace) (rate({metric}_bucket{{{fast}}}[%s]))"
    )


_MATCH = 'method="Match"'
_SEARCHABLE = "textmatch_ingest_accept_to_searchable_seconds"

OBJECTIVES = (
    Objective(
        slo="match-availability",
        alert="TextmatchMatchFails",
        target=0.999,
        bad=f'sum by (namespace) (rate(textmatch_rpc_total{{{_MATCH},code=~"{_BAD_CODES}"}}[%s]))',
        total=f"sum by (namespace) (rate(textmatch_rpc_total{{{_MATCH}}}[%s]))",
        summary="Too many Match calls fail",
    ),
    Objective(
        slo="match-latency",
        alert="TextmatchMatchSlow",
        target=0.99,
        bad=_slow("textmatch_rpc_seconds", "0.5", _MATCH),
        total=f"sum by (namespace) (rate(textmatch_rpc_seconds_count{{{_MATCH}}}[%s]))",
        summary="Too many Match calls take over 0.5 s",
    ),
    Objective(
        slo="time-to-searchable",
        alert="TextmatchSearchableLate",
        target=0.99,
        bad=_slow(_SEARCHABLE, "60.0"),
        total=f"sum by (namespace) (rate({_SEARCHABLE}_count[%s]))",
        summary="Too many documents take over a minute to become searchable",
    ),
)


@dataclass(frozen=True)
class Alert:
    """A condition that must be true for a duration to fire; the runbook has a section for each alert."""

    name: str
    expression: str
    duration: str
    severity: str
    summary: str


ALERTS = (
    Alert(
        "TextmatchNoEncoder",
        "absent(textmatch_encoder_model_info)",
        "5m",
        "page",
        "No encoder has loaded a model: nothing can be matched or indexed",
    ),
    Alert(
        "TextmatchNoMatcher",
        "absent(textmatch_match_candidates_count)",
        "5m",
        "page",
        "No matcher is running: no call is answered, no document accepted",
    ),
    Alert(
        "TextmatchNoWorker",
        "max by (namespace) (textmatch_ingest_backlog_documents) > 0"
        " unless on (namespace) sum by (namespace) (textmatch_worker_ready) > 0"
        " unless on (namespace) max by (namespace) (textmatch_worker_operator_needed) > 0",
        "10m",
        "page",
        "Documents are waiting and no worker is ready",
    ),
    Alert(
        "TextmatchIngestStalls",
        "max by (namespace, collection) (textmatch_ingest_oldest_seconds) > 600",
        "5m",
        "ticket",
        "A document of {{ $labels.collection }} has been waiting for more than ten minutes",
    ),
    Alert(
        "TextmatchOperatorNeeded",
        "max by (namespace, collection, reason) (textmatch_worker_operator_needed) == 1",
        "2m",
        "page",
        "Nothing can be indexed in {{ $labels.collection }} until an operator acts: {{ $labels.reason }}",
    ),
    Alert(
        "TextmatchStoreFails",
        "max by (namespace, dependency, reason) (textmatch_dependency_failing) == 1",
        "2m",
        "page",
        "{{ $labels.dependency }} does not answer or refuses: {{ $labels.reason }}",
    ),
    Alert(
        "TextmatchWorkerStalls",
        "sum by (namespace) (textmatch_worker_stalled) > 0",
        "5m",
        "ticket",
        "A worker takes no messages although some wait, and was not restarted",
    ),
    Alert(
        "TextmatchDeadLetters",
        "max by (namespace, collection) (textmatch_dead_letters) > 0",
        "15m",
        "ticket",
        "Documents could not be indexed: collection {{ $labels.collection }}",
    ),
    Alert(
        "TextmatchWorkersRetry",
        "sum by (namespace, reason) (rate(textmatch_worker_retries_total[10m])) > 0.1",
        "15m",
        "ticket",
        "Workers keep retrying batches: {{ $labels.reason }}",
    ),
    Alert(
        "TextmatchEncoderRefuses",
        "sum by (namespace) (rate(textmatch_encoder_rejections_total[5m]))"
        ' / sum by (namespace) (rate(textmatch_rpc_total{service="textmatch.v1.EncoderService"}[5m])) > 0.05',
        "10m",
        "ticket",
        "Encoders refuse more than 5 % of their calls",
    ),
    Alert(
        "TextmatchEncoderReloadFailed",
        'increase(textmatch_encoder_reloads_total{result="failed"}[15m]) > 0',
        "0m",
        "ticket",
        "An encoder could not load the new models and still serves the old ones",
    ),
    Alert(
        "TextmatchEncodersDiffer",
        "count by (namespace, kind, name)"
        " (count by (namespace, kind, name, model_id) (textmatch_encoder_model_info)) > 1",
        "30m",
        "ticket",
        "Encoders serve different versions of {{ $labels.name }}",
    ),
    Alert(
        "TextmatchTextsFail",
        "sum by (namespace) (rate(textmatch_encoder_failed_texts_total[10m])) > 0",
        "10m",
        "ticket",
        "A model fails on texts",
    ),
    Alert(
        "TextmatchMatchesDegraded",
        "sum by (namespace, reason) (rate(textmatch_match_degraded_total[5m]))"
        " / on (namespace) group_left sum by (namespace) (rate(textmatch_match_candidates_count[5m])) > 0.05",
        "10m",
        "ticket",
        "More than 5 % of matches are degraded: {{ $labels.reason }}",
    ),
    Alert(
        "TextmatchCollectionAbandoned",
        "max by (namespace) (textmatch_worker_abandoned_collections) > 0",
        "5m",
        "ticket",
        "A collection that is not in use no longer gets writes",
    ),
    Alert(
        "TextmatchRedisEvicts",
        "max by (namespace) (textmatch_redis_evicts_keys) == 1",
        "5m",
        "page",
        "Redis may evict accepted documents when its memory is full",
    ),
)


def render() -> dict[str, Any]:
    """The content of the rule file."""
    return {
        "groups": [
            {
                "name": "textmatch-slo",
                "rules": [rule for objective in OBJECTIVES for rule in _recordings(objective)],
            },
            {
                "name": "textmatch-slo-alerts",
                "rules": [rule for objective in OBJECTIVES for rule in _burn_alerts(objective)],
            },
            {"name": "textmatch-alerts", "rules": [_alert(alert) for alert in ALERTS]},
        ]
    }


def _recordings(objective: Objective) -> Iterator[dict[str, Any]]:
    """The burn rate for each window; at 1 the budget of 30 days lasts exactly 30 days."""
    budget = f"{1 - objective.target:g}"
    for window in _WINDOWS:
        bad = objective.bad.replace("%s", window)
        total = objective.total.replace("%s", window)
        # Before the first error there is no series of errors; count that as a rate of 0.
        expression = f"((({bad}) or 0 * ({total})) / ({total})) / {budget}"
        labels = {"slo": objective.slo}
        yield {"record": f"textmatch:slo_burn_rate{window}", "expr": expression, "labels": labels}


def _burn_alerts(objective: Objective) -> Iterator[dict[str, Any]]:
    for long, short, factor, severity in _BURN_RATES:
        burning = " and ".join(
            f'textmatch:slo_burn_rate{window}{{slo="{objective.slo}"}} > {factor:g}'
            for window in (long, short)
        )
        alert = Alert(objective.alert, burning, "2m", severity, objective.summary)
        yield _alert(alert, window=long)


def _alert(alert: Alert, **labels: str) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.duration,
        "labels": {"severity": alert.severity, **labels},
        "annotations": {"summary": alert.summary, "runbook_url": f"{RUNBOOK}#{alert.name.lower()}"},
    }
