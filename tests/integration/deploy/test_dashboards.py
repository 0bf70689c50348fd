"""Every query of every dashboard returns data from a real Prometheus that scrapes a real stack under load."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from qdrant_client import models

from deploy.monitoring.boards import DASHBOARDS
from tests.support.kubernetes import ROOT
from tests.support.prometheus import Prometheus, running_prometheus
from tests.support.qdrant import connect_to
from tests.support.stack import Stack, running_stack, wait_until
from textmatch.client import TextMatchClient
from textmatch.errors import TextMatchError

pytestmark = pytest.mark.slow

RULES = ROOT / "deploy" / "monitoring" / "rules" / "textmatch.yaml"
PANELS = {f"{board.uid}: {panel.title}": panel for board in DASHBOARDS for panel in board.panels}
SHOWN_HERE = [name for name, panel in PANELS.items() if not panel.needs]
# So long that it sees all of the load, wherever in the test it was.
RATE_INTERVAL = "5m"
LONG_TEXT = "a text that no small model reads to its end " * 200


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Has scraped a stack while it was used, and while it was in trouble."""
    with running_stack(tmp_path_factory.mktemp("stack")) as stack:
        folder = tmp_path_factory.mktemp("prometheus")
        with running_prometheus(folder, stack.file["metrics"], [RULES]) as server:
            # A rate needs a sample from before. The gateway has none of a route that nobody called.
            _wait_for(server, "count(up == 1) == 4")
            _use_gateway(stack)
            _wait_for(server, "textmatch_gateway_request_seconds_count")
            with stack.client() as client:
                _use(client)
                _use_gateway(stack)
                _overload(stack, server)
                os.kill(stack.pid("encoder"), signal.SIGHUP)
                _wait_for(server, 'textmatch_encoder_reloads_total{result="done"}')
                _point_the_alias_elsewhere(stack)
                client.ingest_all([{"id": "stuck", "text": "cannot be indexed by this model"}])
                _wait_for(server, "textmatch_worker_operator_needed == 1")
            # And one from after.
            time.sleep(3)
            yield server


@pytest.mark.parametrize("name", SHOWN_HERE)
def test_every_query_returns_data(prometheus: Prometheus, name: str):
    for query in PANELS[name].queries:
        assert prometheus.query(_filled_in(query.expression)), f"no data for {query.expression}"


def test_every_metric_used_is_exported(prometheus: Prometheus):
    used = set()
    for panel in PANELS.values():
        for query in panel.queries:
            used |= set(re.findall(r"\b(?:textmatch|process)_\w+", query.expression))
    # Of a GPU there is none here, and the default models are packed.
    only_elsewhere = {name for name in used if "device_memory" in name}
    missing = used - prometheus.metric_names() - only_elsewhere
    assert not missing


def test_rules_are_evaluated_and_tell_what_is_wrong(prometheus: Prometheus):
    rates = {series["metric"]["slo"] for series in prometheus.query("textmatch:slo_burn_rate1h")}
    assert rates == {"match-availability", "match-latency", "time-to-searchable"}
    pending = {series["metric"]["alertname"] for series in prometheus.query("ALERTS")}
    assert "TextmatchOperatorNeeded" in pending
    assert not pending & {"TextmatchNoEncoder", "TextmatchNoMatcher"}


def _use(client: TextMatchClient) -> None:
    texts = [f"document {number} about {topic}" for number in range(40) for topic in ("rain", "snow", "sun")]
    client.ingest_all(({"id": text, "text": text} for text in texts), wait=True)
    client.encode(LONG_TEXT)
    for query in texts[:30]:
        client.match(query, rerank=True)
    list(client.batch_match([*texts[:10], *texts[:10]], rerank=True))


def _use_gateway(stack: Stack) -> None:
    for path in ("/v1/models", "/v1/collections", "/nothing"):
        httpx.get(f"http://{stack.file['gateway']}{path}")


def _overload(stack: Stack, server: Prometheus) -> None:
    """More than the encoder can do in the time given, until some of it is refused, dropped and degraded."""
    wanted = (
        "textmatch_encoder_rejections_total",
        "textmatch_encoder_dropped_total",
        "textmatch_match_degraded_total",
    )
    with ThreadPoolExecutor(8) as pool:

        def troubled() -> bool:
            calls = [pool.submit(_impatient, stack, number) for number in range(32)]
            for call in calls:
                call.result()
            return all(server.query(metric) for metric in wanted)

        wait_until(troubled, " and ".join(wanted), seconds=180)


def _impatient(stack: Stack, number: int) -> None:
    with stack.client(timeout_seconds=0.02 * (1 + number)) as client, suppress(TextMatchError):
        if number % 2:
            client.encode([LONG_TEXT] * 64)
        else:
            client.match(f"a query of its own, {time.time()} {number}", rerank=True)


def _point_the_alias_elsewhere(stack: Stack) -> None:
    """As if the index had been built by another model."""
    with connect_to(stack.file["qdrant_url"]) as qdrant:
        aliases = qdrant.get_aliases().aliases
        [physical] = [one.collection_name for one in aliases if one.alias_name == "default"]
        name, _, generation = physical.split("--")
        other = f"{name}--another-0123456789ab--{generation}"
        vectors = models.VectorParams(size=4, distance=models.Distance.COSINE)
        metadata = qdrant.get_collection(physical).config.metadata
        qdrant.create_collection(other, {"dense": vectors}, metadata=metadata)
        alias = models.CreateAlias(collection_name=other, alias_name=name)
        qdrant.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])


def _wait_for(server: Prometheus, expression: str) -> None:
    wait_until(lambda: bool(server.query(expression)), expression, seconds=120)


def _filled_in(expression: str) -> str:
    """As Grafana fills in its variables."""
    return expression.replace("$namespace", ".*").replace("$__rate_interval", RATE_INTERVAL)
