"""schemathesis over the OpenAPI document: no undocumented answer, and no 5xx but an honest 503."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.gateway import GatewayThread
from tests.support.scripted_encoder_servicer import ScriptedEncoder
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher

pytestmark = pytest.mark.slow


def no_server_error_that_was_not_asked_for(ctx: Any, response: Any, case: schemathesis.Case) -> Any:
    """A caller that gives a request no time gets 504."""
    if response.status_code == HTTPStatus.GATEWAY_TIMEOUT and float(case.headers["request-timeout"]) < 1:
        return None
    return not_a_server_error(ctx, response, case)


CHECKS = [
    no_server_error_that_was_not_asked_for,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@schemathesis.serializer("application/x-ndjson")
def serialize_lines(ctx: Any, value: Any) -> bytes:
    """Any text: most of it is not JSON, which each line's result says."""
    return str(value).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway before scripted servers, in a thread of its own."""
    matcher = RunningServer.of_matcher(ScriptedMatcher())
    encoder = RunningServer.of_encoder(ScriptedEncoder())
    with GatewayThread(matcher.address, encoder.address) as url:
        yield url
    matcher.stop()
    encoder.stop()


def test_every_route_answers_as_documented(url: str):
    operations = list(schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations())
    assert operations
    for result in operations:
        _check(result.ok())


def _check(operation: APIOperation[Any, Any, Any]) -> None:
    @settings(
        max_examples=40,
        phases=[Phase.explicit, Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def check(case: schemathesis.Case) -> None:
        if case.method == "POST" and case.path.endswith("/documents"):
            # Of each batch, which is sent again for two minutes.
            case.headers.pop("request-timeout", None)
        case.call_and_validate(checks=CHECKS, timeout=60)

    check()


def test_a_gateway_without_servers_answers_503_and_nothing_worse():
    with GatewayThread("127.0.0.1:1", "127.0.0.1:1") as url:
        for path in ("/v1/models", "/v1/collections", "/info", "/health"):
            answer = requests.get(url + path, timeout=60)
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
