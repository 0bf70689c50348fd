"""Documents: streams of JSON lines, and single ones."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.gateway import ndjson
from services.gateway.documents import DocumentUpload
from services.gateway.ndjson import LineStream
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import AsyncTextMatchClient
from textmatch.client.batches import DocumentStream
from textmatch.errors import Overloaded, PermissionDenied, Unauthenticated

DOCUMENTS = "/v1/collections/faq/documents"
NDJSON = {"content-type": "application/x-ndjson"}


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return sorted((json.loads(line) for line in answer.text.splitlines()), key=lambda line: line["line"])


async def upload(http: httpx.AsyncClient, *lines: str) -> list[dict[str, Any]]:
    return lines_of(await http.post(DOCUMENTS, content="\n".join(lines), headers=NDJSON))


async def test_each_line_has_a_result(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    results = await upload(
        http,
        '{"id": "a", "text": "the cat", "version": 7}',
        "",
        '{"id": "b", "text": " "}',
        '{"id": "c"',
        "[]",
        '{"id": "d", "text": "狗"}',
    )
    assert [(line["line"], line["id"], line["outcome"]) for line in results] == [
        (1, "a", "ACCEPTED"),
        (3, "b", "REJECTED"),
        (4, "", "REJECTED"),
        (5, "", "REJECTED"),
        (6, "d", "ACCEPTED"),
    ]
    assert results[0]["version"] == 7
    assert results[1]["error"]["items"][0]["field"] == "text"
    assert results[2]["error"]["items"][0]["field"] == "line 4"
    assert results[2]["error"]["detail"].startswith("line 4: is not JSON")
    assert matcher.documents["d"].text == "狗"
    [again, *_] = await upload(http, '{"id": "a", "text": "the cat"}')
    assert again["outcome"] == "UNCHANGED"


async def test_a_line_that_is_too_long_is_rejected_alone(http: httpx.AsyncClient):
    long = json.dumps({"id": "long", "text": "x" * ndjson.MAX_LINE_BYTES})
    results = await upload(http, long, '{"id": "a", "text": "x"}')
    assert [line["outcome"] for line in results] == ["REJECTED", "ACCEPTED"]
    assert "is longer than" in results[0]["error"]["detail"]


async def test_documents_that_are_refused_for_now_are_sent_again(
    http: httpx.AsyncClient, matcher: ScriptedMatcher
):
    matcher.document_errors["a"] = deque([Overloaded("full", retry_delay_seconds=0.01)])
    [result] = await upload(http, '{"id": "a", "text": "x"}')
    assert result["outcome"] == "ACCEPTED"


async def test_an_upload_that_is_refused_at_once_has_the_status_of_its_error(
    http: httpx.AsyncClient, matcher: ScriptedMatcher
):
    matcher.call_errors.append(PermissionDenied("lacks the scope write"))
    answer = await http.post(DOCUMENTS, content='{"id": "a", "text": "x"}', headers=NDJSON)
    assert (answer.status_code, answer.json()["reason"]) == (403, "SCOPE_MISSING")


async def test_when_a_key_expires_in_the_middle_each_line_says_what_became_of_it(
    http: httpx.AsyncClient, matcher: ScriptedMatcher, monkeypatch: pytest.MonkeyPatch
):
    # Otherwise the batches may arrive in any order, and stored ones may end unanswered.
    monkeypatch.setattr(DocumentStream, "max_in_flight", 1)
    matcher.fail_after_batches = 2
    count = 3_000
    results = await upload(http, *(json.dumps({"id": str(n), "text": "x"}) for n in range(count)))
    assert [line["line"] for line in results] == list(range(1, count + 1))
    outcomes = {line["id"]: line["outcome"] for line in results}
    assert {one for one, outcome in outcomes.items() if outcome == "ACCEPTED"} == matcher.documents.keys()
    assert set(outcomes.values()) == {"ACCEPTED", "FAILED"}
    assert {line["error"]["reason"] for line in results if "error" in line} == {"API_KEY_INVALID"}


async def test_results_come_while_the_upload_goes_on(http: httpx.AsyncClient):
    first_result = asyncio.Event()

    async def lines() -> AsyncIterator[bytes]:
        for number in range(2_000):
            yield json.dumps({"id": str(number), "text": "x"}).encode() + b"\n"
        await asyncio.wait_for(first_result.wait(), 20)
        yield b'{"id": "last", "text": "x"}'

    async def read() -> list[str]:
        async with http.stream("POST", DOCUMENTS, content=lines(), headers=NDJSON) as answer:
            return [line async for line in answer.aiter_lines()]

    # httpx sends everything before it reads: the server must not wait for it.
    async def release() -> None:
        while not (await http.get("/v1/collections/faq/status")).json()["document_count"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        first_result.set()

    found, _ = await asyncio.gather(read(), release())
    assert len(found) == 2_001


async def test_a_caller_that_reads_nothing_before_its_end_gets_everything(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    # Far more results than sockets hold, and than stay in memory.
    monkeypatch.setattr(ndjson, "_MEMORY_BYTES", 10_000)
    count = 30_000
    content = "".join(json.dumps({"id": f"{'i' * 200}{n}", "text": "x"}) + "\n" for n in range(count))
    results = lines_of(await http.post(DOCUMENTS, content=content, headers=NDJSON, timeout=120))
    assert [line["line"] for line in results] == list(range(1, count + 1))


async def test_the_answer_to_a_lost_connection_is_not_known_and_said_so(
    matcher_server: RunningServer, encoder_server: RunningServer, matcher: ScriptedMatcher
):
    """A stand-in for two minutes without an answer."""
    matcher.fail_after_batches = 0

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"id": "a", "text": "x"}\n{"id":'
        yield b' "b", "text": "y"}'

    async with AsyncTextMatchClient(matcher_server.address, encoder_server.address) as client:
        upload = DocumentUpload(client, LineStream(chunks()), None)
        with pytest.raises(Unauthenticated):
            _ = [line async for line in upload.results()]


@pytest.mark.parametrize(
    "headers",
    [{"content-type": "text/csv"}, {}, {**NDJSON, "content-encoding": "gzip"}],
    ids=["csv", "no type", "gzip"],
)
async def test_other_contents_are_refused(http: httpx.AsyncClient, headers: dict[str, str]):
    answer = await http.post(DOCUMENTS, content=b"id,text", headers=headers)
    assert answer.status_code == 415


async def test_a_single_document_is_stored_read_and_deleted(http: httpx.AsyncClient):
    place = f"{DOCUMENTS}/a/b c"
    body = {"text": "the cat", "attributes": {"year": 2020, "tags": ["x"]}, "version": 5}
    put = await http.put(place, json=body)
    assert put.json() == {"id": "a/b c", "outcome": "ACCEPTED", "version": 5}
    found = await http.get(place)
    assert found.json() == {"id": "a/b c", **body}
    assert (await http.delete(place)).json() == {"deleted_count": 1}
    missing = await http.get(place)
    assert (missing.status_code, missing.json()["reason"]) == (404, "DOCUMENT_NOT_FOUND")


@pytest.mark.parametrize(
    ("body", "field"),
    [({"text": " "}, "text"), ({"text": "a", "version": 0}, "version"), ({"text": "a", "id": "b"}, "id")],
)
async def test_a_bad_document_is_named(http: httpx.AsyncClient, body: dict[str, Any], field: str):
    answer = await http.put(f"{DOCUMENTS}/a", json=body)
    assert answer.status_code == 400
    assert [item["field"] for item in answer.json()["items"]] == [field]


async def test_documents_are_deleted_by_ids_or_by_a_filter(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    await upload(http, '{"id": "a", "text": "x"}', '{"id": "b", "text": "y"}')
    answer = await http.post(f"{DOCUMENTS}:delete", json={"ids": ["a", "z"]})
    assert answer.json() == {"deleted_count": 1}
    by_filter = {"filter": {"must": [{"match": {"field": "n", "values": [1]}}]}}
    for body in ({"where": "n = 1"}, by_filter):
        assert (await http.post(f"{DOCUMENTS}:delete", json=body)).status_code == 200
        assert matcher.delete_filters[-1].must[0].match.field == "n"


@pytest.mark.parametrize("body", [{}, {"ids": ["a"], "where": "n = 1"}, {"ids": []}, {"filter": {}}])
async def test_nothing_is_deleted_by_mistake(
    http: httpx.AsyncClient, matcher: ScriptedMatcher, body: dict[str, Any]
):
    answer = await http.post(f"{DOCUMENTS}:delete", json=body)
    assert answer.status_code == 400
    assert matcher.batch_sizes == []


async def test_a_document_that_is_not_stored_in_time_is_504(
    http: httpx.AsyncClient, matcher: ScriptedMatcher
):
    matcher.document_errors["a"] = deque([Overloaded("full", retry_delay_seconds=0.01)] * 1_000)
    answer = await http.put(f"{DOCUMENTS}/a", json={"text": "a"}, headers={"request-timeout": "1"})
    assert (answer.status_code, answer.json()["reason"]) == (504, "DEADLINE_EXCEEDED")


async def test_a_list_is_lines_that_can_be_uploaded_again(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    documents = [
        {"id": f"{n}", "text": f"text\n{n}", "attributes": {"n": n}, "version": n + 1} for n in range(5)
    ]
    await upload(http, *map(json.dumps, documents))
    matcher.page_limit = 2
    answer = await http.get(DOCUMENTS)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in answer.text.splitlines()] == documents
    stored = dict(matcher.documents)
    matcher.documents.clear()
    results = lines_of(await http.post(DOCUMENTS, content=answer.content, headers=NDJSON))
    assert [line["outcome"] for line in results] == ["ACCEPTED"] * 5
    assert matcher.documents == stored


async def test_a_list_has_a_filter_a_start_and_a_limit(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    await upload(http, *(json.dumps({"id": f"{n}", "text": "x"}) for n in range(5)))
    options = {"where": "n = 1", "after": "1", "limit": 2, "omit_text": True}
    answer = await http.get(DOCUMENTS, params=options)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [(line["id"], line["text"]) for line in lines] == [("2", ""), ("3", "")]
    [request] = matcher.list_requests
    assert (request.collection, request.filter.must[0].match.field) == ("faq", "n")
    empty = await http.get(DOCUMENTS, params={"after": "9"})
    assert (empty.status_code, empty.text) == (200, "")
    for bad in ({"limit": 0}, {"where": "n ="}, {"after": "x" * 513}):
        assert (await http.get(DOCUMENTS, params=bad)).status_code == 400


async def test_a_list_that_fails_at_once_has_the_status_of_its_error(
    http: httpx.AsyncClient, matcher: ScriptedMatcher
):
    matcher.call_errors.append(PermissionDenied("lacks the scope read"))
    assert (await http.get(DOCUMENTS)).status_code == 403


async def test_a_list_that_fails_in_the_middle_is_cut_off(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    """A list that looks whole must be whole."""
    await upload(http, *(json.dumps({"id": f"{n}", "text": "x"}) for n in range(5)))
    matcher.page_limit = 2
    matcher.list_errors[1] = Overloaded("later", retry_delay_seconds=1.0)
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get(DOCUMENTS)


async def test_many_documents_are_read_and_counted(http: httpx.AsyncClient, matcher: ScriptedMatcher):
    await upload(http, '{"id": "a", "text": "x", "version": 2}', '{"id": "b", "text": "y", "version": 3}')
    answer = await http.post(f"{DOCUMENTS}:get", json={"ids": ["b", "z", "a"]})
    assert answer.json() == {
        "documents": [
            {"id": "b", "text": "y", "attributes": {}, "version": 3},
            {"id": "a", "text": "x", "attributes": {}, "version": 2},
        ],
        "missing_ids": ["z"],
    }
    assert (await http.post(f"{DOCUMENTS}:count", json={})).json() == {"document_count": 2}
    matcher.matching_count = 7
    by_filter = {"filter": {"must": [{"match": {"field": "n", "values": [1]}}]}}
    for body in ({"where": "n = 1"}, by_filter):
        assert (await http.post(f"{DOCUMENTS}:count", json=body)).json() == {"document_count": 7}
    for ids in ([], ["a"] * 1_001):
        assert (await http.post(f"{DOCUMENTS}:get", json={"ids": ids})).status_code == 400
