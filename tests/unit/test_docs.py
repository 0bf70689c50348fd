"""Docs are held to the code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_configuration_page_is_what_the_settings_say():
    render = runpy.run_path(str(DOCS / "generate_configuration.py"))["render"]
    assert (DOCS / "configuration.md").read_text() == render(), "run make docs"


def test_every_metric_in_the_metrics_page_exists_and_the_other_way_round():
    named = set(_metric_names((DOCS / "metrics.md").read_text()))
    sources = [path for path in DOCS.parent.glob("*/**/metrics.py") if ".venv" not in path.parts]
    sources += [DOCS.parent / "textmatch" / one for one in ("queue/depth.py", "circuit_breaker.py")]
    defined = {name for path in sources for name in _metric_names(path.read_text())}
    assert named == defined


def test_every_test_that_shows_a_guarantee_exists():
    page = (DOCS / "guarantees.md").read_text()
    named = re.findall(r"`([^`]+\.py)::(\w+)`", page)
    missing = [f"{file}::{name}" for file, name in named if not _has_test(DOCS.parent / "tests" / file, name)]
    assert not missing
    guarantees = [line for line in page.splitlines() if line.startswith("| ") and "shown by" not in line]
    assert all("::" in line for line in guarantees)
    assert len(named) > len(guarantees)


def _has_test(path: Path, name: str) -> bool:
    return path.exists() and re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE) is not None


def _metric_names(text: str) -> list[str]:
    return re.findall(r"\btextmatch_[a-z_]+", text)
