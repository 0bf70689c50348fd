"""Errors have the status, the reason, the items and the delay that gRPC callers get."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.gateway import serve_gateway
from tests.support.scripted_servicer import ScriptedMatcher
from textmatch.errors import (
    CollectionDenied,
    DeadlinePassed,
    InvalidInput,
    LexicalIndexMissing,
    ModelMismatch,
    NotReady,
    Overloaded,
    PermissionDenied,
    TextMatchError,
    Unauthenticated,
)

MATCH = "/v1/collections/default:match"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (InvalidInput.of_field("query", "is bad"), 400, "INVALID_INPUT"),
        (Unauthenticated("the API key is not valid"), 401, "API_KEY_INVALID"),
        (PermissionDenied("lacks the scope read"), 403, "SCOPE_MISSING"),
        (CollectionDenied("not this one"), 403, "COLLECTION_DENIED"),
        (LexicalIndexMissing("no BM25"), 409, "LEXICAL_INDEX_MISSING"),
        (Overloaded("too much", retry_delay_seconds=2.4), 429, "OVERLOADED"),
        (NotReady("loading"), 503, "NOT_READY"),
        (DeadlinePassed("late"), 504, "DEADLINE_EXCEEDED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_error_has_the_status_and_reason_of_its_kind(
    http: httpx.AsyncClient, matcher: ScriptedMatcher, error: TextMatchError, status: int, reason: str
):
    # NotReady is UNAVAILABLE, which gRPC itself repeats.
    matcher.call_errors.extend([error] * 5)
    answer = await http.post(MATCH, json={"query": "a"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["reason"] == problem["error"]["code"] == reason
    assert problem["type"] == f"tag:textmatch.dev,2026:{reason}"
    assert problem["detail"] == problem["error"]["message"] == str(error)
    assert problem["request_id"] == answer.headers["x-request-id"]


async def test_retry_after_is_the_delay_of_the_server_rounded_up(
    http: httpx.AsyncClient, matcher: ScriptedMatcher
):
    matcher.call_errors.append(Overloaded("too much", retry_delay_seconds=2.4))
    answer = await http.post(MATCH, json={"query": "a"})
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["retry_after_seconds"] == 2.4


async def test_a_refused_key_names_the_scheme(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    matcher.call_errors.append(Unauthenticated("the API key is not valid"))
    answer = await http.post(MATCH, json={"query": "a"})
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_metadata_of_an_error_is_kept(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    matcher.call_errors.append(ModelMismatch("old-1", "new-2"))
    answer = await http.post(MATCH, json={"query": "a"})
    assert answer.json()["metadata"] == {"index_model_id": "old-1", "encoder_model_id": "new-2"}


async def test_a_server_that_does_not_answer_is_503_without_its_address():
    async with (
        serve_gateway("127.0.0.1:1", "127.0.0.1:1") as url,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
    ):
        answer = await http.post(MATCH, json={"query": "a"})
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the matcher does not answer"
        assert "127.0.0.1" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("PATCH", "/v1/models", 405), ("POST", "/docs", 405)],
)
async def test_what_no_route_takes_is_a_problem_too(
    http: httpx.AsyncClient, method: str, path: str, status: int
):
    answer = await http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "about:blank"


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b'{"query": NaN}', b"\xff"])
async def test_a_body_that_cannot_be_read_is_a_problem(http: httpx.AsyncClient, content: bytes):
    headers = {"content-type": "application/json"}
    answer = await http.post(MATCH, content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": "3"}, "top_k"),
        ({"rerank": "maybe"}, "rerank"),
        ({"where": "module ="}, "where"),
        ({"where": "a = 1", "filter": {}}, "filter"),
        ({"filter": {"must": [{}]}}, "filter.must[0]"),
        ({"filters": "a = 1"}, "filters"),
    ],
)
async def test_a_bad_option_is_named(http: httpx.AsyncClient, options: dict[str, Any], field: str):
    answer = await http.post(MATCH, json={"query": "a", **options})
    assert answer.status_code == 400
    assert [item["field"] for item in answer.json()["items"]] == [field]
