"""Grafana dashboards as values, their JSON, and PromQL for their panels.

Each query is limited to the namespaces that are chosen on the dashboard.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_GRID_WIDTH = 24
_PANEL_HEIGHT = 8
_SCHEMA_VERSION = 39
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

NEEDS_CUDA = "a GPU"
NEEDS_PADDING = "a model whose texts are padded"
NAMESPACE = 'namespace=~"$namespace"'
ONLY_MATCH = 'method="Match"'


class Kind(enum.Enum):
    """Grafana's panel types."""

    LINES = "timeseries"
    NUMBER = "stat"
    HEATMAP = "heatmap"
    TABLE = "table"


class Unit(enum.Enum):
    """Grafana's names of units."""

    NONE = "short"
    SECONDS = "s"
    SHARE = "percentunit"
    PER_SECOND = "cps"
    BYTES = "bytes"


@dataclass(frozen=True)
class PanelQuery:
    """PromQL, and the legend of its series, where `{{label}}` is replaced by the label's value."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        needs: what a stack must have for the panel to show data; "" if every stack has it.
    """

    title: str
    description: str
    queries: tuple[PanelQuery, ...]
    unit: Unit = Unit.NONE
    kind: Kind = Kind.LINES
    width: int = 8
    needs: str = ""


@dataclass(frozen=True)
class Dashboard:
    """A page of panels, filled from left to right and from top to bottom."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...] = field(default_factory=tuple)


def rate(metric: str, by: str = "", where: str = "") -> str:
    """The rate of a counter over all processes, for each value of the labels `by`."""
    selector = f"{metric}{{{NAMESPACE}{',' if where else ''}{where}}}"
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({selector}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", where: str = "") -> str:
    """A quantile of a histogram, for each value of the labels `by`."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'le, {by}' if by else 'le', where)})"


def quantiles(
    metric: str, where: str = "", shares: tuple[float, ...] = (0.5, 0.95, 0.99)
) -> tuple[PanelQuery, ...]:
    """Quantiles of a histogram, one query each."""
    return tuple(PanelQuery(quantile(share, metric, where=where), f"p{share * 100:g}") for share in shares)


def mean(metric: str) -> str:
    """The mean of the values in a histogram."""
    return f"{rate(metric + '_sum')} / {rate(metric + '_count')}"


def gauge(metric: str, by: str = "") -> str:
    """A gauge that every process reports with the same value, for each value of the labels `by`."""
    grouping = f" by ({by})" if by else ""
    return f"max{grouping} ({metric}{{{NAMESPACE}}})"


def gauge_sum(metric: str) -> str:
    """The sum over collections of such a gauge."""
    return f"sum (max by (collection) ({metric}{{{NAMESPACE}}}))"


def render(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["textmatch"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["textmatch"], "title": "textmatch", "asDropdown": False}],
        "templating": {"list": [_datasource_variable(), _namespace_variable()]},
        "panels": list(_render_panels(dashboard.panels)),
    }


def _render_panels(panels: tuple[Panel, ...]) -> Iterator[dict[str, Any]]:
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _GRID_WIDTH:
            x, y = 0, y + _PANEL_HEIGHT
        yield {
            "id": number,
            "type": panel.kind.value,
            "title": panel.title,
            "description": panel.description,
            "datasource": _DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": panel.width, "h": _PANEL_HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit.value, "min": 0}, "overrides": []},
            "options": _options(panel.kind),
            "targets": [
                {
                    "refId": chr(ord("A") + position),
                    "datasource": _DATASOURCE,
                    "expr": query.expression,
                    "legendFormat": query.legend or "__auto",
                    "format": "heatmap" if panel.kind is Kind.HEATMAP else "time_series",
                    "instant": panel.kind is Kind.TABLE,
                }
                for position, query in enumerate(panel.queries)
            ],
        }
        x += panel.width


def _options(kind: Kind) -> dict[str, Any]:
    match kind:
        case Kind.LINES:
            return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        case Kind.NUMBER:
            return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none"}
        case Kind.HEATMAP:
            return {"calculate": False, "yAxis": {"unit": "short"}, "color": {"scheme": "Blues"}}
        case Kind.TABLE:
            return {"showHeader": True}


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _namespace_variable() -> dict[str, Any]:
    """All namespaces by default. Outside Kubernetes the label is missing, which `.*` matches too."""
    return {
        "name": "namespace",
        "type": "query",
        "label": "Namespace",
        "datasource": _DATASOURCE,
        "query": {"query": "label_values(textmatch_rpc_total, namespace)", "refId": "A"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
