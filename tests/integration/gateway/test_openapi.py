"""schemathesis over the OpenAPI document: no undocumented answer, and no 5xx but an honest 503."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.gateway import GatewayThread
from tests.support.scripted_servicer import RunningServer, ScriptedEncoder, ScriptedMatcher

pytestmark = pytest.mark.slow

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway before scripted servers, in a thread of its own."""
    matcher = RunningServer.of_matcher(ScriptedMatcher())
    encoder = RunningServer.of_encoder(ScriptedEncoder())
    with GatewayThread(matcher.address, encoder.address) as url:
        yield url
    matcher.stop()
    encoder.stop()


@pytest.fixture
def schema(url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


lazy = schemathesis.pytest.from_fixture("schema")


@lazy.parametrize()
@settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_route_answers_as_documented(case: schemathesis.Case):
    case.call_and_validate(checks=CHECKS, timeout=60)


def test_a_gateway_without_servers_answers_503_and_nothing_worse():
    with GatewayThread("127.0.0.1:1", "127.0.0.1:1") as url:
        for path in ("/v1/models", "/v1/collections", "/info", "/health"):
            answer = requests.get(url + path, timeout=60)
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
