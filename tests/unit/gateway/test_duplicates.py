"""The route of duplicates: lines of pairs, and errors before and after the first line."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.support.scripted_servicer import ScriptedMatcher
from textmatch.errors import CollectionNotFound, PermissionDenied
from textmatch.v1 import matcher_service_pb2 as pb

ROUTE = "/v1/collections/faq:findDuplicates"


@pytest.fixture
def stored(matcher: ScriptedMatcher) -> list[str]:
    """The ids of documents that are stored, on pages of three. Neighbors are pairs."""
    matcher.page_limit = 3
    ids = [f"{number:02}" for number in range(10)]
    for one in ids:
        matcher.documents[one] = pb.Document(id=one, text=f"text {one}", version=1)
    return ids


async def lines(http: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    answer = await http.post(ROUTE, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_each_line_has_pairs_and_where_to_go_on(http: httpx.AsyncClient, stored: list[str]):
    found = await lines(http)
    pairs = [(pair["first"]["id"], pair["second"]["id"]) for line in found for pair in line["pairs"]]
    assert pairs == list(pairwise(stored))
    assert [line["resume_token"] for line in found] == ["02", "05", "08", "09"]
    assert [line["is_last"] for line in found] == [False, False, False, True]
    assert found[0]["pairs"][0] == {
        "first": {"id": "00", "text": "text 00", "version": 1},
        "second": {"id": "01", "text": "text 01", "version": 1},
        "score": 0.75,
        "recall_score": 0.0,
        "rerank_score": None,
    }
    [rest] = await lines(http, resume_token=stored[7])
    assert rest["compared_count"] == 2


async def test_options_are_sent(http: httpx.AsyncClient, matcher: ScriptedMatcher, stored: list[str]):
    await lines(http, against="b", min_score=0.75, neighbors=3, where="n = 1", rerank=False, omit_text=True)
    [request, *_] = matcher.duplicate_requests
    assert (request.collection, request.against, request.min_score) == ("faq", "b", 0.75)
    assert (request.neighbors, request.omit_rerank, request.omit_text) == (3, True, True)
    assert request.filter.must[0].match.field == "n"


async def test_an_error_has_its_status_before_the_first_line_and_a_line_after_it(
    http: httpx.AsyncClient, matcher: ScriptedMatcher, stored: list[str]
):
    matcher.call_errors.append(CollectionNotFound("faq"))
    assert (await http.post(ROUTE, json={})).status_code == 404
    real = matcher._fail_if_told
    count = 0

    def fail_the_third_time() -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise PermissionDenied("no more")
        real()

    matcher._fail_if_told = fail_the_third_time  # type: ignore[method-assign]
    *found, last = await lines(http)
    assert [line["resume_token"] for line in found] == ["02", "05"]
    assert last["error"]["detail"] == "no more"
    assert (last["resume_token"], last["pairs"]) == ("05", [])


@pytest.mark.parametrize(
    "body", [{"min_score": 0}, {"min_score": 2}, {"neighbors": 101}, {"where": "n >"}, {"topk": 3}]
)
async def test_a_bad_option_is_400(http: httpx.AsyncClient, matcher: ScriptedMatcher, body: dict[str, Any]):
    assert (await http.post(ROUTE, json=body)).status_code == 400
    assert matcher.duplicate_requests == []


async def test_a_match_has_a_document_as_its_query(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    body = {"document_id": "a", "exclude_ids": ["b"], "require_complete": True, "group_by": "author"}
    answer = await http.post("/v1/collections/faq:match", json=body)
    assert answer.status_code == 200
    assert answer.json()["query"] == "a"
    [request] = matcher.match_requests
    assert (request.query, request.document_id, request.options.group_by) == ("", "a", "author")
    assert (list(request.options.exclude_ids), request.options.require_complete) == (["b"], True)
    for bad in ({}, {"query": "a", "document_id": "b"}, {"query": "a", "group_by": "a..b"}):
        assert (await http.post("/v1/collections/faq:match", json=bad)).status_code == 400
