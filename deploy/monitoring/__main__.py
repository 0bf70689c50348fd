"""`python -m deploy.monitoring`: writes dashboards and rules into this folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from deploy.monitoring import alerting, grafana
from deploy.monitoring.boards import DASHBOARDS

_HERE = Path(__file__).parent
_HEADER = "# Made by `make monitoring` from deploy/monitoring/alerting.py.\n"


def files() -> dict[str, str]:
    """Path below this folder -> content."""
    rendered = {
        f"dashboards/{dashboard.uid}.json": json.dumps(grafana.render(dashboard), indent=2) + "\n"
        for dashboard in DASHBOARDS
    }
    groups = alerting.render()
    rendered["rules/textmatch.yaml"] = _HEADER + _yaml(groups)
    rendered["prometheus-rule.yaml"] = _HEADER + _yaml(_custom_resource(groups))
    return rendered


def main() -> int:
    """Write all files."""
    for name, content in files().items():
        path = _HERE / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return 0


def _custom_resource(groups: dict[str, Any]) -> dict[str, Any]:
    """The same rules for the Prometheus operator."""
    about = "Recording rules and alerts; each alert names its section of the runbook."
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "textmatch", "annotations": {"textmatch.dev/about": about}},
        "spec": groups,
    }


def _yaml(value: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, width=110)
    return text


if __name__ == "__main__":
    sys.exit(main())
