"""The document half of the matcher: IngestDocuments, GetDocument, DeleteDocuments, GetIngestStatus."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import IngestState, make_ingest_state
from tests.support.collections import close_index, make_index, register
from tests.support.queue import take_queued
from tests.support.redis import RedisServer
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable, DocumentNotFound, InvalidInput
from textmatch.index.index import Index
from textmatch.queue.dead_letters import of_document
from textmatch.queue.redis_client import connect
from textmatch.v1 import matcher_service_pb2 as pb
from workers.indexer import DocumentOutcome, IndexerDependencies, index_documents

ACCEPTED, UNCHANGED, REJECTED = (
    pb.INGEST_OUTCOME_ACCEPTED,
    pb.INGEST_OUTCOME_UNCHANGED,
    pb.INGEST_OUTCOME_REJECTED,
)


def proto(document_id: str, text: str = "text", version: int | None = None, **attributes: Any) -> pb.Document:
    struct = Struct()
    struct.update(attributes)
    return pb.Document(id=document_id, text=text, attributes=struct, version=version)


async def send(handler: DocumentCalls, *batches: list[pb.Document]) -> list[list[pb.IngestResult]]:
    """Send each batch as one request of a stream."""

    async def requests() -> AsyncIterator[pb.IngestDocumentsRequest]:
        for batch in batches:
            yield pb.IngestDocumentsRequest(documents=batch)

    return [list(response.results) async for response in handler.ingest(requests())]


async def work(deps: IndexerDependencies, redis: Redis) -> list[DocumentOutcome]:
    """Do what a worker would do with all that is queued."""
    return await index_documents(await take_queued(redis), deps)


def outcomes(results: list[pb.IngestResult]) -> list[int]:
    return [result.outcome for result in results]


async def document_state(handler: DocumentCalls, document_id: str) -> str:
    response = await handler.status(pb.GetIngestStatusRequest(document_id=document_id))
    return pb.DocumentState.Name(response.document_state).removeprefix("DOCUMENT_STATE_")


async def test_each_request_of_a_stream_is_answered_in_order(handler: DocumentCalls):
    first, second = await send(handler, [proto("a"), proto("文档🙂")], [proto("c")])
    assert [(result.id, result.outcome) for result in first] == [("a", ACCEPTED), ("文档🙂", ACCEPTED)]
    assert [result.id for result in second] == ["c"]
    assert first[0].version == first[1].version < second[0].version
    assert abs(second[0].version / 1e6 - time.time()) < 60


async def test_bad_documents_are_named_and_their_neighbours_go_in(handler: DocumentCalls, state: IngestState):
    [results] = await send(
        handler,
        [
            proto("a"),
            proto("", "  "),
            proto("c", version=0),
            proto("d", n=float("nan")),
            proto("e", version=9),
        ],
    )
    assert outcomes(results) == [ACCEPTED, REJECTED, REJECTED, REJECTED, ACCEPTED]
    assert results[4].version == 9
    fields = []
    for result in results[1:4]:
        bad_request = error_details_pb2.BadRequest()
        assert any(detail.Unpack(bad_request) for detail in result.error.details)
        fields.append([violation.field for violation in bad_request.field_violations])
    assert fields == [
        ["documents[1].id", "documents[1].text"],
        ["documents[2].version"],
        ["documents[3].attributes"],
    ]
    assert set(await state.pending.versions(["a", "", "c", "d", "e"])) == {"a", "e"}


@pytest.mark.parametrize(("count", "complaint"), [(0, "documents: is empty"), (1_001, "1,001 items")])
async def test_a_request_of_a_wrong_size_fails_the_call(handler: DocumentCalls, count: int, complaint: str):
    with pytest.raises(InvalidInput, match=complaint):
        await send(handler, [proto("a")] * count)


async def test_of_a_repeated_id_the_later_document_wins(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    [results] = await send(handler, [proto("a", "one"), proto("b"), proto("a", "two"), proto("a", "three")])
    versions = [result.version for result in results]
    assert versions == [versions[0], versions[0], versions[0] + 1, versions[0] + 2]
    await work(deps, redis)
    assert (await handler.get(pb.GetDocumentRequest(id="a"))).document.text == "three"


async def test_versions_never_go_back_within_a_process(handler: DocumentCalls):
    [first] = await send(handler, [proto("a")] * 1_000)
    [second] = await send(handler, [proto("a")])
    assert second[0].version > first[-1].version


async def test_a_stored_document_comes_back_whole(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    sent = proto("文档🙂", "猫 🐈", version=7, n=3, half=0.5, many=[1, "二", None, {"深": True}], empty={})
    await send(handler, [sent])
    with pytest.raises(DocumentNotFound, match="文档🙂"):
        await handler.get(pb.GetDocumentRequest(id="文档🙂"))
    await work(deps, redis)
    assert (await handler.get(pb.GetDocumentRequest(id="文档🙂"))).document == sent
    stored = (await deps.collection.index.fetch(["文档🙂"]))["文档🙂"].document
    assert stored.attributes["n"] == 3
    assert isinstance(stored.attributes["n"], int)


async def test_what_is_stored_already_is_unchanged(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    [[first]] = await send(handler, [proto("a", n=1)])
    [[waiting]] = await send(handler, [proto("a", n=1)])
    assert waiting.outcome == ACCEPTED
    await work(deps, redis)
    [[again]] = await send(handler, [proto("a", n=1)])
    assert (again.outcome, again.version) == (UNCHANGED, waiting.version)
    assert first.version < waiting.version
    [results] = await send(
        handler,
        [
            proto("a", n=1, version=again.version),
            proto("a", n=1, version=again.version + 1),
            proto("a", n=1),
            proto("b"),
        ],
    )
    assert outcomes(results) == [UNCHANGED, ACCEPTED, ACCEPTED, ACCEPTED]


async def test_a_change_that_is_taken_back_in_the_same_request_is_not_lost(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    await send(handler, [proto("a", "old")])
    await work(deps, redis)
    [results] = await send(handler, [proto("a", "new"), proto("a", "old")])
    assert outcomes(results) == [ACCEPTED, ACCEPTED]
    await work(deps, redis)
    assert (await handler.get(pb.GetDocumentRequest(id="a"))).document.text == "old"


async def test_nothing_is_unchanged_under_a_tombstone(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies, redis: Redis
):
    [[stored]] = await send(handler, [proto("a")])
    await work(deps, redis)
    await state.tombstones.add({"a": stored.version}, ttl_seconds=60)
    [[again]] = await send(handler, [proto("a")])
    assert again.outcome == ACCEPTED


async def test_deleted_documents_stay_deleted(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    await send(handler, [proto("a"), proto("b"), proto("c")])
    await work(deps, redis)
    await send(handler, [proto("a", "a late write"), proto("queued")])
    answer = await handler.delete(pb.DeleteDocumentsRequest(ids=["a", "b", "queued", "never seen"]))
    assert answer.deleted_count == 2
    assert [await document_state(handler, one) for one in ("a", "b", "queued")] == ["DELETED"] * 3
    assert await work(deps, redis) == [DocumentOutcome.DELETED, DocumentOutcome.DELETED]
    status = await handler.status(pb.GetIngestStatusRequest())
    assert (status.document_count, status.queued_count) == (1, 0)
    [[again]] = await send(handler, [proto("a", "after the delete")])
    assert again.outcome == ACCEPTED
    assert await work(deps, redis) == [DocumentOutcome.INDEXED]


async def test_a_delete_spares_newer_versions(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    await send(handler, [proto("a", version=5), proto("b", version=7)])
    await work(deps, redis)
    answer = await handler.delete(pb.DeleteDocumentsRequest(ids=["a", "b"], version=6))
    assert answer.deleted_count == 1
    assert [await document_state(handler, one) for one in ("a", "b")] == ["DELETED", "INDEXED"]


async def test_own_versions_go_on_after_a_delete_without_a_version(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    """The delete had the time as its version, so that version 2 was accepted and dropped."""
    await send(handler, [proto("a", version=1)])
    await work(deps, redis)
    assert (await handler.delete(pb.DeleteDocumentsRequest(ids=["a"]))).deleted_count == 1
    [results] = await send(handler, [proto("a", version=1), proto("a", version=2)])
    assert outcomes(results) == [REJECTED, ACCEPTED]
    assert "a delete covers version 1" in results[0].error.message
    assert await work(deps, redis) == [DocumentOutcome.INDEXED]
    assert await document_state(handler, "a") == "INDEXED"


async def test_a_delete_without_a_version_takes_high_versions_of_a_client(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    highest = 2**53 - 1
    await send(handler, [proto("a", version=highest), proto("queued", version=highest)])
    await work(deps, redis)
    await send(handler, [proto("queued", "again", version=highest)])
    assert (await handler.delete(pb.DeleteDocumentsRequest(ids=["a", "queued"]))).deleted_count == 2
    await work(deps, redis)
    assert await document_state(handler, "queued") == "DELETED"


async def test_a_write_without_a_version_goes_above_versions_of_a_client(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    """It had the time as its version, so that it was accepted and dropped as older."""
    high = 2**52
    await send(handler, [proto("a", version=high)])
    await work(deps, redis)
    [[result]] = await send(handler, [proto("a", "newer")])
    assert result.version == high + 1
    assert await work(deps, redis) == [DocumentOutcome.INDEXED]
    assert (await handler.get(pb.GetDocumentRequest(id="a"))).document.text == "newer"
    [[top]] = await send(handler, [proto("a", "highest", version=2**53 - 1)])
    await work(deps, redis)
    [[refused]] = await send(handler, [proto("a", "too late")])
    assert (top.outcome, refused.outcome) == (ACCEPTED, REJECTED)
    assert "highest possible version" in refused.error.message


async def test_documents_are_deleted_by_a_filter(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    await send(handler, [proto(f"d{number}", language="zh" if number % 2 else "en") for number in range(10)])
    await work(deps, redis)
    condition = pb.Filter(
        must=[pb.Condition(match=pb.FieldMatch(field="language", values=[{"string_value": "zh"}]))]
    )
    answer = await handler.delete(pb.DeleteDocumentsRequest(filter=condition))
    assert answer.deleted_count == 5
    assert [await document_state(handler, one) for one in ("d1", "d2")] == ["DELETED", "INDEXED"]


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (pb.DeleteDocumentsRequest(), "either ids or a filter"),
        (pb.DeleteDocumentsRequest(ids=["a"], filter=pb.Filter()), "ids: give either"),
        (pb.DeleteDocumentsRequest(filter=pb.Filter()), "every document"),
        (pb.DeleteDocumentsRequest(ids=["a", ""]), r"ids\[1\]: is empty"),
        (pb.DeleteDocumentsRequest(ids=["a"] * 1_001), "1,001 items"),
        (pb.DeleteDocumentsRequest(ids=["a"], version=0), "version: is 0"),
    ],
)
async def test_a_delete_that_is_not_clear_is_refused(
    handler: DocumentCalls, request_: pb.DeleteDocumentsRequest, complaint: str
):
    with pytest.raises(InvalidInput, match=complaint):
        await handler.delete(request_)


async def test_the_status_follows_a_document(handler: DocumentCalls, deps: IndexerDependencies, redis: Redis):
    assert await document_state(handler, "a") == "UNKNOWN"
    await send(handler, [proto("a")])
    assert await document_state(handler, "a") == "PENDING"
    waiting = await handler.status(pb.GetIngestStatusRequest())
    assert (waiting.queued_count, waiting.document_count, waiting.model_id) == (1, 0, "")
    assert 0.0 <= waiting.oldest_queued_seconds < 60.0
    await work(deps, redis)
    assert await document_state(handler, "a") == "INDEXED"
    settled = await handler.status(pb.GetIngestStatusRequest())
    assert (settled.queued_count, settled.oldest_queued_seconds, settled.document_count) == (0, 0.0, 1)
    assert settled.collection == "default"
    assert settled.model_id == await deps.collection.index.model_in_use() != ""


async def test_many_states_are_read_at_once(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies, redis: Redis
):
    await send(handler, [proto("stored", version=3), proto("deleted", version=4)])
    await work(deps, redis)
    await handler.delete(pb.DeleteDocumentsRequest(ids=["deleted"]))
    await state.dead_letters.add([of_document(Document("failed", "t", version=5), "TEXT_FAILED", "因" * 999)])
    await send(handler, [proto("queued", version=6)])
    ids = ["queued", "unknown", "failed", "deleted", "stored", "queued"]
    many = [*ids, *(f"unknown {number}" for number in range(994))]
    found = (await handler.status(pb.GetIngestStatusRequest(document_ids=many))).documents
    assert [one.id for one in found] == many
    names = [pb.DocumentState.Name(one.state).removeprefix("DOCUMENT_STATE_") for one in found]
    assert names[:6] == ["PENDING", "UNKNOWN", "FAILED", "DELETED", "INDEXED", "PENDING"]
    assert set(names[6:]) == {"UNKNOWN"}
    assert [one.version for one in found[:6]] == [6, 0, 5, 4, 3, 6]
    assert [one.error for one in found[:3]] == ["", "", "因" * 341]
    for wrong in ([*many, "a"], ["a", ""]):
        with pytest.raises(InvalidInput, match="document_ids"):
            await handler.status(pb.GetIngestStatusRequest(document_ids=wrong))
    with pytest.raises(InvalidInput, match="either"):
        await handler.status(pb.GetIngestStatusRequest(document_ids=["a"], document_id="b"))


async def test_the_status_says_why_a_document_failed_until_it_is_deleted(
    handler: DocumentCalls, state: IngestState
):
    await state.dead_letters.add([of_document(Document("a", "t", version=5), "TEXT_FAILED", "因为")])
    status = await handler.status(pb.GetIngestStatusRequest(document_id="a"))
    assert (status.document_state, status.document_error) == (pb.DOCUMENT_STATE_FAILED, "因为")
    assert status.dead_letter_count == 1
    await handler.delete(pb.DeleteDocumentsRequest(ids=["a"]))
    assert await document_state(handler, "a") == "DELETED"


@pytest.mark.parametrize("document_id", ["x" * 513, "a\0b", "  "])
async def test_ids_are_checked(handler: DocumentCalls, document_id: str):
    with pytest.raises(InvalidInput, match="id:"):
        await handler.get(pb.GetDocumentRequest(id=document_id))
    with pytest.raises(InvalidInput, match="document_id:"):
        await handler.status(pb.GetIngestStatusRequest(document_id=document_id))


async def test_writes_are_taken_while_the_index_is_down(state: IngestState):
    index = make_index("http://127.0.0.1:1")
    down = replace(state, collection=replace(state.collection, index=index))
    [[result]] = await send(DocumentCalls(down), [proto("a")])
    assert result.outcome == ACCEPTED
    await close_index(index)


async def test_the_status_has_what_redis_knows_while_the_index_is_down(state: IngestState):
    index = make_index("http://127.0.0.1:1")
    down = DocumentCalls(replace(state, collection=replace(state.collection, index=index)))
    await send(down, [proto("a")])
    await state.dead_letters.add([of_document(Document("b", "t", version=5), "TEXT_FAILED", "bad")])
    status = await down.status(pb.GetIngestStatusRequest(document_id="a"))
    assert (status.queued_count, status.dead_letter_count) == (1, 1)
    assert not status.HasField("document_count")
    [problem] = status.problems
    assert (problem.source, problem.reason) == ("qdrant", "DEPENDENCY_UNAVAILABLE")
    assert "Qdrant does not answer" in problem.message
    assert status.document_state == pb.DOCUMENT_STATE_PENDING
    status = await down.status(pb.GetIngestStatusRequest(document_ids=["c", "a"]))
    assert [one.state for one in status.documents] == [
        pb.DOCUMENT_STATE_UNSPECIFIED,
        pb.DOCUMENT_STATE_PENDING,
    ]
    for document_id, known in (("b", pb.DOCUMENT_STATE_FAILED), ("c", pb.DOCUMENT_STATE_UNSPECIFIED)):
        status = await down.status(pb.GetIngestStatusRequest(document_id=document_id))
        assert status.document_state == known
    await close_index(index)


async def test_writes_are_refused_while_redis_is_down(own_redis_server: RedisServer, index: Index):
    redis = connect(own_redis_server.url)
    await register(redis)
    down = DocumentCalls(make_ingest_state(redis, index))
    own_redis_server.kill()
    with pytest.raises(DependencyUnavailable, match="Redis"):
        await send(down, [proto("a")])
    own_redis_server.start()
    [[result]] = await send(down, [proto("a")])
    assert result.outcome == ACCEPTED
    await redis.aclose()
