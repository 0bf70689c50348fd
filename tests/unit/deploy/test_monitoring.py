"""Dashboards and rules are what the code says; alerts fire when they should and are in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.monitoring.__main__ import files
from deploy.monitoring.boards import DASHBOARDS
from tests.support.kubernetes import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "rules" / "textmatch.yaml"
RULE_TESTS = MONITORING / "rules" / "textmatch.test.yaml"
ALERTS = [
    rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def test_generated_files_are_up_to_date():
    for name, content in files().items():
        assert (MONITORING / name).read_text() == content, f"{name} is stale: run make monitoring"


def test_rules_are_valid():
    assert _promtool("check", "rules", RULES).returncode == 0


def test_alerts_fire_when_they_should_and_only_then():
    result = _promtool("test", "rules", RULE_TESTS)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_tests_of_alerts_notice_a_changed_threshold(tmp_path: Path):
    (tmp_path / "textmatch.yaml").write_text(RULES.read_text().replace("> 14.4", "> 1000"))
    shutil.copy(RULE_TESTS, tmp_path)
    assert _promtool("test", "rules", tmp_path / RULE_TESTS.name).returncode != 0


def test_every_alert_is_tested_firing_and_silent():
    cases = [
        case for test in yaml.safe_load(RULE_TESTS.read_text())["tests"] for case in test["alert_rule_test"]
    ]
    firing = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    names = {alert["alert"] for alert in ALERTS}
    assert firing == names
    assert silent == names


def test_every_alert_has_a_section_in_the_runbook_and_every_section_an_alert():
    links = {alert["annotations"]["runbook_url"] for alert in ALERTS}
    [page] = {link.partition("#")[0] for link in links}
    headings = re.findall(r"^## (Textmatch\w+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert {link.partition("#")[2] for link in links} == {heading.lower() for heading in headings}


def test_alerts_are_pages_or_tickets_and_say_what_is_wrong():
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert len(alert["annotations"]["summary"]) > 20


def test_metrics_of_rules_and_dashboards_are_documented():
    documented = set(_metric_names((ROOT / "docs" / "metrics.md").read_text()))
    expressions = [rule["expr"] for rule in ALERTS]
    expressions += [
        query.expression for board in DASHBOARDS for panel in board.panels for query in panel.queries
    ]
    used = {
        re.sub("_(bucket|sum|count)$", "", name)
        for expression in expressions
        for name in _metric_names(expression)
    }
    assert used <= documented


def test_panels_explain_themselves():
    for board in DASHBOARDS:
        titles = [panel.title for panel in board.panels]
        assert len(titles) == len(set(titles))
        for panel in board.panels:
            assert panel.description.endswith("."), panel.title


def _promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH; on Debian: apt-get install prometheus")
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


def _metric_names(text: str) -> list[str]:
    return re.findall(r"\btextmatch_[a-z_]+", text)
