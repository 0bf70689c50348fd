"""What holds for every request: ids, limits, metrics, and the end when the caller goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from prometheus_client import REGISTRY

from tests.support.gateway import MAX_BODY_BYTES, serve_gateway
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher

MATCH = "/v1/collections/default:match"


def requests_counted(status: str, route: str = "/v1/collections/{collection}:match") -> float:
    labels = {"method": "POST", "route": route, "status": status}
    return REGISTRY.get_sample_value("textmatch_gateway_requests_total", labels) or 0.0


async def test_the_id_of_a_request_is_the_callers_or_a_new_one(http: httpx.AsyncClient):
    given = await http.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = [(await http.get("/v1/models")).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    unusable = await http.get("/v1/models", headers={"x-request-id": "a" * 65})
    assert len(unusable.headers["x-request-id"]) == 16


async def test_the_id_and_the_key_go_on_to_the_servers(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    headers = {"x-request-id": "mine-2", "authorization": "Bearer a-key"}
    await http.post(MATCH, json={"query": "a"}, headers=headers)
    assert matcher.metadata["x-request-id"] == "mine-2"
    assert matcher.metadata["authorization"] == "Bearer a-key"
    await http.post(MATCH, json={"query": "a"})
    assert "authorization" not in matcher.metadata


async def test_a_key_that_cannot_be_one_is_refused(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    answer = await http.post(MATCH, json={"query": "a"}, headers={"authorization": "Bearer a\tb"})
    assert (answer.status_code, answer.json()["reason"]) == (401, "API_KEY_INVALID")
    assert matcher.match_requests == []


async def test_a_body_that_is_too_large_is_refused(http: httpx.AsyncClient):
    answer = await http.post(MATCH, content=b"x" * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413
    assert answer.json()["detail"] == f"the body is larger than {MAX_BODY_BYTES:,} bytes"


async def test_so_is_one_that_does_not_tell_its_length(http: httpx.AsyncClient):
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 1024 + 1):
            yield b" " * 1024

    headers = {"content-type": "application/json"}
    answer = await http.post(MATCH, content=parts(), headers=headers)
    assert answer.status_code == 413


async def test_more_requests_than_allowed_get_429(
    matcher_server: RunningServer, encoder_server: RunningServer, matcher: ScriptedMatcher
):
    matcher.delay_seconds = 1.0
    addresses = matcher_server.address, encoder_server.address
    async with (
        serve_gateway(*addresses, max_requests=2) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
    ):
        answers = await asyncio.gather(*(http.post(MATCH, json={"query": "a"}) for _ in range(4)))
        refused = [one for one in answers if one.status_code == 429]
        assert len(refused) == 2
        assert {one.headers["retry-after"] for one in refused} == {"1"}
        assert (await http.post(MATCH, json={"query": "a"})).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:8080", 200), ("evil.example", 421), ("a b", 421)],
)
async def test_a_page_whose_name_leads_to_loopback_is_refused(
    http: httpx.AsyncClient, host: str, status: int
):
    assert (await http.get("/v1/models", headers={"host": host})).status_code == status


async def test_the_time_limit_of_a_request(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    matcher.delay_seconds = 5.0
    started = time.monotonic()
    answer = await http.post(MATCH, json={"query": "a"}, headers={"request-timeout": "0.3"})
    assert time.monotonic() - started < 4
    assert (answer.status_code, answer.json()["reason"]) == (504, "DEADLINE_EXCEEDED")
    assert "127.0.0.1" not in answer.text


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon", "61"])
async def test_a_time_limit_is_a_number_of_seconds_within_the_limit(http: httpx.AsyncClient, value: str):
    answer = await http.post(MATCH, json={"query": "a"}, headers={"request-timeout": value})
    assert (answer.status_code, answer.json()["items"][0]["field"]) == (400, "request-timeout")


async def test_the_call_ends_when_the_caller_goes_away(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    matcher.delay_seconds = 30.0
    before = requests_counted("499")
    with pytest.raises(httpx.ReadTimeout):
        await http.post(MATCH, json={"query": "a"}, timeout=0.5)
    deadline = time.monotonic() + 10
    while requests_counted("499") == before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_requests_are_counted_by_route_and_status(http: httpx.AsyncClient):
    before = requests_counted("200"), requests_counted("404", "none")
    await http.post(MATCH, json={"query": "a"})
    await http.post("/somewhere/else")
    assert (requests_counted("200"), requests_counted("404", "none")) == (before[0] + 1, before[1] + 1)
