"""`python -m deploy.monitoring.draw URL FOLDER SECONDS`: the dashboards as pictures, without a Grafana."""

from __future__ import annotations

import json
import math
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from deploy.monitoring.dashboards import DASHBOARDS
from deploy.monitoring.grafana import Dashboard, Kind, Panel

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_COLUMNS = 3
_RATE_INTERVAL = "30s"
_MAX_LEGEND_CHARACTERS = 40


def draw(dashboard: Dashboard, url: str, path: Path, seconds: float) -> None:
    """Draw the last so many seconds of a dashboard, from the Prometheus at this address."""
    rows = math.ceil(len(dashboard.panels) / _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(6 * _COLUMNS, 3 * rows), squeeze=False)
    figure.suptitle(f"{dashboard.title}: {dashboard.description}")
    end = time.time()
    for axis, panel in zip(axes.flat, dashboard.panels, strict=False):
        _draw_panel(axis, panel, url, end - seconds, end)
    for axis in axes.flat[len(dashboard.panels) :]:
        axis.set_visible(False)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, dpi=60)
    plt.close(figure)


def main(arguments: Sequence[str]) -> int:
    """Draw all dashboards."""
    url, folder, seconds = arguments[0], Path(arguments[1]), float(arguments[2])
    for dashboard in DASHBOARDS:
        draw(dashboard, url, folder / f"{dashboard.uid}.png", seconds)
    return 0


def _draw_panel(axis: Axes, panel: Panel, url: str, start: float, end: float) -> None:
    axis.set_title(f"{panel.title} [{panel.unit.value}]", fontsize=10)
    series = [
        (_name(query.legend, one["metric"]), one["values"])
        for query in panel.queries
        for one in _query(url, query.expression, start, end)
    ]
    if panel.kind is Kind.HEATMAP:
        series = _differences(series)
    for name, values in series:
        times = [float(moment) - start for moment, _ in values]
        axis.plot(times, [float(value) for _, value in values], label=name)
    if series:
        axis.legend(fontsize=6, ncols=2)
    else:
        axis.text(0.5, 0.5, f"needs {panel.needs}" if panel.needs else "no data", ha="center")
    axis.set_xlim(0, end - start)
    axis.set_ylim(bottom=0)


def _query(url: str, expression: str, start: float, end: float) -> list[Any]:
    filled = expression.replace("$namespace", ".*").replace("$__rate_interval", _RATE_INTERVAL)
    parameters = urllib.parse.urlencode({"query": filled, "start": start, "end": end, "step": "1"})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{parameters}", timeout=30) as response:  # noqa: S310
        result: list[Any] = json.load(response)["data"]["result"]
    return result


def _name(legend: str, labels: dict[str, str]) -> str:
    for label, value in labels.items():
        legend = legend.replace(f"{{{{{label}}}}}", value)
    return (legend or " ".join(labels.values()) or "all")[:_MAX_LEGEND_CHARACTERS]


def _differences(series: list[tuple[str, list[Any]]]) -> list[tuple[str, list[Any]]]:
    """Cumulative buckets -> what is in each of them, empty ones left out."""
    ordered = sorted(series, key=lambda one: float(one[0]))
    below: dict[float, float] = {}
    single = []
    for name, values in ordered:
        own = [(moment, float(value) - below.get(moment, 0.0)) for moment, value in values]
        below = {moment: float(value) for moment, value in values}
        if any(value > 0 for _, value in own):
            single.append((f"≤ {name}", own))
    return single


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
