"""Documents and matches over HTTP, with a real matcher, worker, Redis and index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from tests.integration.collections.installation import Installation
from tests.integration.ingest.scripted_encoder import REFUSED_TEXT, ScriptedEncoder
from tests.support.gateway import serve_gateway
from tests.support.redis import RedisServer
from textmatch.queue import messages

Install = Callable[..., Awaitable[Installation]]
NDJSON = {"content-type": "application/x-ndjson"}
FAQ = "/v1/collections/faq"
MATCH = {"recall": "dense", "rerank": "none"}


async def upload(http: httpx.AsyncClient, *documents: dict[str, object]) -> list[dict[str, object]]:
    content = "\n".join(json.dumps(document) for document in documents)
    answer = await http.post(f"{FAQ}/documents", content=content, headers=NDJSON)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_line_of_an_upload_may_delete(http: httpx.AsyncClient, alpha: Installation):
    assert (await http.put(FAQ, json={})).status_code == 200
    await upload(http, {"id": "a", "text": "delete a folder"}, {"id": "b", "text": "copy a file"})
    await alpha.work()
    [line] = await upload(http, {"id": "a", "deleted": True})
    assert (line["id"], line["outcome"]) == ("a", "ACCEPTED")
    states = f"{FAQ}/documents:status"
    before = (await http.post(states, json={"ids": ["b", "a", "c"]})).json()
    assert [one["state"] for one in before] == ["INDEXED", "PENDING", "UNKNOWN"]
    await alpha.work()
    found = (await http.post(f"{FAQ}/documents:get", json={"ids": ["a", "b"]})).json()
    assert found["missing_ids"] == ["a"]
    assert (await http.post(states, json={"ids": ["a"]})).json()[0]["state"] == "DELETED"
    create = {"text": "t", "expected_version": 0}
    assert (await http.put(f"{FAQ}/documents/b", json=create)).status_code == 409
    assert (await http.put(f"{FAQ}/documents/a", json=create)).status_code == 200


async def test_a_document_from_its_upload_to_its_match_and_its_delete(
    http: httpx.AsyncClient, alpha: Installation
):
    index = {"field": "year", "kind": "integer"}
    assert (await http.put(FAQ, json={"payload_indexes": [index]})).status_code == 200
    lines = await upload(
        http,
        {"id": "a", "text": "delete a folder", "attributes": {"year": 2024}},
        {"id": "b", "text": "copy a file", "attributes": {"year": 2020}},
        {"id": "c", "text": ""},
    )
    assert sorted((line["id"], line["outcome"]) for line in lines) == [
        ("a", "ACCEPTED"),
        ("b", "ACCEPTED"),
        ("c", "REJECTED"),
    ]
    assert (await http.get(f"{FAQ}/status")).json()["queued_count"] == 2
    await alpha.work()
    assert (await http.get(FAQ)).json()["document_count"] == 2

    async def found(**options: object) -> list[str]:
        answer = await http.post(f"{FAQ}:match", json={"query": "delete a folder", **MATCH, **options})
        assert answer.status_code == 200, answer.text
        return [match["id"] for match in answer.json()["matches"]]

    assert (await found())[0] == "a"
    assert await found(where="year < 2022") == ["b"]
    year = {"range": {"field": "year", "lt": 2022}}
    assert await found(filter={"must": [year]}) == ["b"]
    batch = await http.post(f"{FAQ}:batchMatch", json={"queries": ["copy a file"], **MATCH})
    assert json.loads(batch.text)["result"]["matches"][0]["id"] == "b"

    assert (await http.get(f"{FAQ}/documents/a")).json()["attributes"] == {"year": 2024}
    assert (await http.post(f"{FAQ}/documents:delete", json={"where": "year = 2024"})).json() == {
        "deleted_count": 1
    }
    assert await found() == ["b"]
    assert (await http.delete(FAQ)).status_code == 204
    assert (await http.get(FAQ)).status_code == 404


async def test_a_failed_document_is_told_by_the_status(http: httpx.AsyncClient, alpha: Installation):
    await http.put(FAQ, json={})
    await upload(http, {"id": "bad", "text": REFUSED_TEXT})
    await alpha.work()
    status = (await http.get(f"{FAQ}/status", params={"document_id": "bad"})).json()
    assert (status["document_state"], status["dead_letter_count"]) == ("FAILED", 1)
    assert status["document_error"]


async def test_keys_open_what_they_open_over_grpc(
    installations: Install, encoder: ScriptedEncoder, tmp_path: Path
):
    keys = {name: f"{name}-key-0123456789abcdef" for name in ("reader", "writer", "admin", "other")}
    file = tmp_path / "keys"
    file.write_text(
        f"reader read {keys['reader']}\nwriter read,write {keys['writer']} collections=faq\n"
        f"admin admin {keys['admin']}\nother read,write {keys['other']} collections=manuals\n"
    )
    guarded = await installations("alpha", keys_file=file)
    async with (
        serve_gateway(guarded.address, encoder.target) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):

        async def ask(name: str, method: str, path: str, body: object = None) -> tuple[int, str]:
            headers = {"authorization": f"Bearer {keys.get(name, name)}"} if name else {}
            answer = await http.request(method, path, json=body, headers=headers)
            return answer.status_code, answer.json().get("reason", "") if answer.content else ""

        place, document = f"{FAQ}/documents/a", {"text": "a"}
        assert await ask("admin", "PUT", FAQ, {}) == (200, "")
        assert await ask("", "GET", FAQ) == (401, "API_KEY_MISSING")
        assert await ask("a guess of somebody", "GET", FAQ) == (401, "API_KEY_INVALID")
        assert await ask("reader", "GET", FAQ) == (200, "")
        assert await ask("reader", "PUT", place, document) == (403, "SCOPE_MISSING")
        assert await ask("writer", "PUT", place, document) == (200, "")
        assert await ask("other", "PUT", place, document) == (403, "COLLECTION_DENIED")
        by_filter = {"where": "a = 1"}
        assert await ask("writer", "POST", f"{FAQ}/documents:delete", by_filter) == (403, "SCOPE_MISSING")
        headers = {"authorization": f"Bearer {keys['other']}"}
        assert (await http.get("/v1/collections", headers=headers)).json() == {"collections": []}


async def test_every_line_has_an_honest_result_though_the_broker_was_away(
    own_redis_server: RedisServer, qdrant_url: str, encoder: ScriptedEncoder
):
    count = 3_000
    async with Installation("alpha", own_redis_server.url, qdrant_url, encoder.target) as installation:
        # Other installations have the collection "faq" in the same Qdrant.
        await installation.create("outage")
        async with (
            serve_gateway(installation.address, encoder.target) as url,
            httpx.AsyncClient(base_url=url, timeout=180) as http,
        ):

            async def lines() -> AsyncIterator[bytes]:
                for number in range(count):
                    if number == count // 3:
                        await asyncio.sleep(0.5)
                        own_redis_server.kill()
                    if number == 2 * count // 3:
                        # What is sent until then waits in the gateway's batches.
                        await asyncio.sleep(2)
                        await asyncio.to_thread(own_redis_server.start)
                    yield json.dumps({"id": str(number), "text": f"text {number}"}).encode() + b"\n"

            path = "/v1/collections/outage/documents"
            answer = await http.post(path, content=lines(), headers=NDJSON)
        results = [json.loads(line) for line in answer.text.splitlines()]
        assert sorted(line["line"] for line in results) == list(range(1, count + 1))
        assert {line["outcome"] for line in results} == {"ACCEPTED"}
        decoded = [
            messages.decode(argument, messages.stamp_from_fields(stamp or {}))
            for argument, stamp in await installation.queued()
        ]
        queued = {one.id for message in decoded for one in message.documents}
        assert queued == {str(number) for number in range(count)}


@pytest.mark.parametrize("path", [f"{FAQ}:match", f"{FAQ}/documents"])
async def test_a_collection_that_does_not_exist_is_404_before_anything_is_read(
    http: httpx.AsyncClient, path: str
):
    if path.endswith("documents"):
        answer = await http.post(path, content='{"id": "a", "text": "b"}', headers=NDJSON)
    else:
        answer = await http.post(path, json={"query": "a"})
    assert (answer.status_code, answer.json()["reason"]) == (404, "COLLECTION_NOT_FOUND")
