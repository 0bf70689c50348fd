"""Collections, and matching in them."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import httpx

from tests.support.scripted_servicer import ScriptedMatcher
from textmatch.errors import InvalidInput, Overloaded
from textmatch.v1 import matcher_service_pb2 as pb


async def stored(http: httpx.AsyncClient, **texts: str) -> None:
    for document_id, text in texts.items():
        answer = await http.put(
            f"/v1/collections/faq/documents/{document_id}", json={"text": text, "attributes": {"n": 1}}
        )
        assert answer.status_code == 200


async def test_a_collection_is_made_found_listed_and_deleted(http: httpx.AsyncClient):
    settings = {"bi_encoder": "tiny", "payload_indexes": [{"field": "year", "kind": "integer"}]}
    made = await http.put("/v1/collections/faq", json=settings)
    assert made.status_code == 200
    assert made.json() == {
        "name": "faq",
        "bi_encoder": "tiny",
        "cross_encoder": "",
        "lexical": True,
        "payload_indexes": [{"field": "year", "kind": "integer", "is_tenant": False}],
        "passage_tokens": 256,
        "passage_overlap": 0,
        "model_id": "tiny-0123456789ab",
        "document_count": 3,
        "created_at": "2023-11-14T22:13:20Z",
    }
    assert (await http.get("/v1/collections/faq")).json() == made.json()
    await http.put("/v1/collections/another", json={})
    listed = (await http.get("/v1/collections")).json()["collections"]
    assert [one["name"] for one in listed] == ["another", "faq"]
    deleted = await http.delete("/v1/collections/faq")
    assert (deleted.status_code, deleted.content) == (204, b"")
    missing = await http.get("/v1/collections/faq")
    assert (missing.status_code, missing.json()["reason"]) == (404, "COLLECTION_NOT_FOUND")


async def test_a_bad_name_is_refused(http: httpx.AsyncClient):
    answer = await http.put("/v1/collections/No", json={})
    assert (answer.status_code, answer.json()["items"][0]["field"]) == (400, "collection.name")


async def test_a_match_has_the_parts_that_the_command_prints(
    http: httpx.AsyncClient, matcher: ScriptedMatcher
):
    await stored(http, a="the cat sits", b="a dog")
    body = {"query": "the cat", "top_k": 1, "explain": True}
    answer = await http.post("/v1/collections/faq:match", json=body)
    assert answer.status_code == 200
    content = answer.json()
    [found] = content.pop("matches")
    assert content == {
        "query": "the cat",
        "degraded": None,
        "candidate_count": 2,
        "scored_count": 1,
        "recall": "dense",
        "timings_ms": {"encode": 1.5, "recall": 2.0, "rerank": 3.0, "total": 7.0},
        "models": {"bi_encoder": "tiny-0123456789ab", "cross_encoder": "pair-0123456789ab"},
    }
    explanation = found.pop("explanation")
    assert (explanation["cosine"], explanation["weights"]["cosine"]) == (0.75, 2.0)
    assert found == {
        "id": "a",
        "score": 1.0,
        "recall_score": 1.0,
        "rerank_score": 1.0,
        "text": "the cat sits",
        "attributes": {"n": 1},
        "version": 0,
    }
    assert matcher.match_requests[-1].collection == "faq"


async def test_options_are_sent(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    options: dict[str, Any] = {
        "top_k": 3,
        "candidate_count": 50,
        "where": "year > 2020",
        "min_score": 0.5,
        "recall": "dense",
        "rerank": "none",
        "rerank_depth": 7,
        "omit_text": True,
        "omit_attributes": True,
    }
    await http.post("/v1/collections/faq:match", json={"query": "a", **options})
    sent = matcher.match_requests[-1].options
    assert (sent.top_k, sent.candidate_count, sent.min_score, sent.rerank_depth) == (3, 50, 0.5, 7)
    assert (sent.recall, sent.rerank) == (pb.RECALL_MODE_DENSE, pb.RERANK_MODE_NONE)
    assert (sent.omit_text, sent.omit_attributes, sent.explain) == (True, True, False)
    assert sent.filter.must[0].range.gt == 2020


async def test_each_query_of_a_batch_has_a_line_in_order(http: httpx.AsyncClient):
    await stored(http, a="the cat")
    body = {"queries": ["the cat", "fail", " "], "rerank": "none"}
    answer = await http.post("/v1/collections/faq:batchMatch", json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["query_index"] for line in lines] == [0, 1, 2]
    assert lines[0]["result"]["matches"][0]["id"] == "a"
    assert lines[1]["error"]["reason"] == "INVALID_INPUT"
    assert lines[2]["error"]["items"][0]["reason"] == "TEXT_EMPTY"


async def test_a_batch_that_fails_as_a_whole_has_the_status_of_its_error(
    http: httpx.AsyncClient, matcher: ScriptedMatcher
):
    matcher.batch_errors.append(InvalidInput.of_field("options", "are bad"))
    answer = await http.post("/v1/collections/faq:batchMatch", json={"queries": ["a"]})
    assert (answer.status_code, answer.json()["reason"]) == (400, "INVALID_INPUT")


async def test_status_of_the_queue_and_of_a_document(http: httpx.AsyncClient):
    await stored(http, a="the cat")
    plain = (await http.get("/v1/collections/faq/status")).json()
    assert (plain["collection"], plain["document_count"], plain["document_state"]) == ("faq", 1, None)
    one = (await http.get("/v1/collections/faq/status", params={"document_id": "a"})).json()
    assert one["document_state"] == "INDEXED"


async def test_queries_that_are_not_answered_in_time_have_that_error(
    http: httpx.AsyncClient, matcher: ScriptedMatcher
):
    """The client would send them again for two minutes."""
    matcher.query_errors["b"] = deque([Overloaded("full", retry_delay_seconds=0.01)] * 1_000)
    headers = {"request-timeout": "1"}
    answer = await http.post("/v1/collections/faq:batchMatch", json={"queries": ["a", "b"]}, headers=headers)
    assert answer.status_code == 200
    first, second = map(json.loads, answer.text.splitlines())
    # Nothing matches, which is a result too.
    assert (first["result"]["query"], first["result"]["matches"]) == ("a", [])
    assert (second["query_index"], second["error"]["reason"]) == (1, "DEADLINE_EXCEEDED")
    late = await http.post("/v1/collections/faq:batchMatch", json={"queries": ["b"]}, headers=headers)
    assert (late.status_code, late.json()["reason"]) == (504, "DEADLINE_EXCEEDED")
