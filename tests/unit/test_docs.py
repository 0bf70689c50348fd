"""Docs are held to the code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_configuration_page_is_what_the_settings_say():
    render = runpy.run_path(str(DOCS / "generate_configuration.py"))["render"]
    assert (DOCS / "configuration.md").read_text() == render(), "run make docs"


def test_every_metric_in_the_operations_page_exists_and_the_other_way_round():
    named = set(_metric_names((DOCS / "operations.md").read_text()))
    sources = [path for path in DOCS.parent.glob("*/**/metrics.py") if ".venv" not in path.parts]
    sources.append(DOCS.parent / "textmatch" / "queue" / "gauges.py")
    defined = {name for path in sources for name in _metric_names(path.read_text())}
    assert named == defined


def _metric_names(text: str) -> list[str]:
    return re.findall(r"\btextmatch_[a-z_]+", text)
