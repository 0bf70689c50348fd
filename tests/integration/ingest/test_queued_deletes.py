"""Deletes among the documents to ingest: accepted by the queue alone, applied by a worker."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import UNLIMITED, IngestState, make_ingest_state
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.ingest.test_documents_handler import (
    ACCEPTED,
    REJECTED,
    document_state,
    outcomes,
    proto,
    send,
    work,
)
from tests.support.collections import close_index, make_index
from tests.support.queue import take_queued
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable, Overloaded
from textmatch.index.index import Index
from textmatch.queue.dead_letters import of_document
from textmatch.v1 import matcher_service_pb2 as pb
from workers.indexer import DocumentOutcome, IndexerDependencies, index_documents

INDEXED, STALE, DELETED = DocumentOutcome.INDEXED, DocumentOutcome.STALE, DocumentOutcome.DELETED


def deletion(document_id: str, version: int | None = None) -> pb.Document:
    return pb.Document(id=document_id, deleted=True, version=version)


@pytest.fixture
async def down(state: IngestState) -> AsyncIterator[DocumentCalls]:
    """A matcher that does not reach Qdrant."""
    index = make_index("http://127.0.0.1:1")
    yield DocumentCalls(replace(state, collection=replace(state.collection, index=index)))
    await close_index(index)


async def texts(index: Index, *ids: str) -> dict[str, str]:
    return {one: found.document.text for one, found in (await index.fetch(ids)).items()}


async def test_a_delete_is_accepted_while_qdrant_is_down_and_applied_later(
    handler: DocumentCalls, down: DocumentCalls, deps: IndexerDependencies, index: Index, redis: Redis
):
    await send(handler, [proto("a", version=5), proto("b"), proto("c", version=5)])
    await work(deps, redis)
    [results] = await send(down, [deletion("a"), deletion("b"), deletion("c", 4), deletion("never stored")])
    assert outcomes(results) == [ACCEPTED] * 4
    assert [result.version for result in results] == [0, 0, 4, 0]
    assert await document_state(down, "a") == "PENDING"
    assert set(await texts(index, "a", "b", "c")) == {"a", "b", "c"}
    assert await work(deps, redis) == [DELETED] * 4
    assert set(await texts(index, "a", "b", "c")) == {"c"}
    assert [await document_state(handler, one) for one in ("a", "c")] == ["DELETED", "INDEXED"]
    assert (await handler.status(pb.GetIngestStatusRequest())).queued_count == 0
    # Its version was not known when the delete was accepted.
    [results] = await send(down, [proto("a", version=5), proto("a", version=6)])
    assert outcomes(results) == [REJECTED, ACCEPTED]


async def test_documents_and_deletes_of_a_request_count_in_their_order(
    handler: DocumentCalls, deps: IndexerDependencies, index: Index, redis: Redis
):
    await send(handler, [proto("a", "old"), proto("b", "same")])
    await work(deps, redis)
    [results] = await send(
        handler,
        [
            proto("a", "first"),
            deletion("a"),
            proto("a", "second"),
            deletion("b"),
            proto("b", "same"),
            proto("c"),
            deletion("c"),
        ],
    )
    assert outcomes(results) == [ACCEPTED] * 7
    assert results[1].version == results[0].version < results[2].version
    assert await work(deps, redis) == [STALE, DELETED, INDEXED, DELETED, INDEXED, DELETED, DELETED]
    assert await texts(index, "a", "b", "c") == {"a": "second", "b": "same"}
    # Own versions go on after a delete without one.
    [results] = await send(
        handler, [proto("d", version=7), deletion("d"), proto("d", version=7), proto("d", version=8)]
    )
    assert outcomes(results) == [ACCEPTED, ACCEPTED, REJECTED, ACCEPTED]


async def test_a_delete_counts_from_its_acceptance_on(
    handler: DocumentCalls, deps: IndexerDependencies, index: Index, redis: Redis
):
    """Also if a worker takes the delete after writes that came later, or again."""
    await send(handler, [proto("a", "first", version=3)])
    [write] = await take_queued(redis)
    await send(handler, [deletion("a")])
    [delete] = await take_queued(redis)
    assert await index_documents([write], deps) == [DELETED]
    await send(handler, [proto("a", "second", version=4)])
    await work(deps, redis)
    for _ in range(2):
        assert await index_documents([delete, write], deps) == [DELETED, DELETED]
    assert await texts(index, "a") == {"a": "second"}


async def test_a_retried_delete_keeps_what_was_written_in_between(
    handler: DocumentCalls, deps: IndexerDependencies, index: Index, redis: Redis
):
    async def delete() -> pb.IngestResult:
        async def requests() -> AsyncIterator[pb.IngestDocumentsRequest]:
            yield pb.IngestDocumentsRequest(
                documents=[deletion("a")], request_id="b2c8e0b7-3e0e-4a57-9e7f-3f9c2a1c5a10"
            )

        [response] = [one async for one in handler.ingest(requests())]
        return response.results[0]

    [[stored]] = await send(handler, [proto("a", "first")])
    await work(deps, redis)
    assert (await delete()).version == stored.version
    await send(handler, [proto("a", "second")])
    assert (await delete()).version == stored.version
    await work(deps, redis)
    assert await texts(index, "a") == {"a": "second"}
    assert await document_state(handler, "a") == "INDEXED"


async def test_a_dead_letter_is_deleted_with_its_document(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies, redis: Redis
):
    await state.dead_letters.add(
        [of_document(Document(one, "t", version=9), "TEXT_FAILED", "bad") for one in "abc"]
    )
    [results] = await send(handler, [deletion("a"), deletion("b", 8)])
    assert [result.version for result in results] == [9, 8]
    assert [letter.key for letter in await state.dead_letters.entries(10)] == ["b", "c"]
    await work(deps, redis)
    # Of another sender.
    await index_documents([Document.deletion("c", 9)], deps)
    assert [letter.key for letter in await state.dead_letters.entries(10)] == ["b"]


async def test_another_sender_may_delete_up_to_a_version(
    state: IngestState, deps: IndexerDependencies, index: Index, redis: Redis
):
    await index_documents([Document("a", "text", version=5), Document("b", "text", version=6)], deps)
    deletes = [{"id": one, "deleted": True, "version": 5} for one in "ab"]
    message = {"schema_version": 2, "accepted_at": time.time(), "documents": deletes}
    await state.producer.publish([json.dumps(message)])
    assert await work(deps, redis) == [DELETED, DELETED]
    assert set(await texts(index, "a", "b")) == {"b"}
    # A tombstone keeps older writes out.
    assert await index_documents([Document("a", "older", version=4)], deps) == [DELETED]
    assert await texts(index, "a") == {}


async def test_deletes_are_applied_while_nothing_can_be_embedded(
    deps: IndexerDependencies, index: Index, encoder: ScriptedEncoder
):
    await index_documents([Document("a", "text", version=5)], deps)
    encoder.stop()
    with pytest.raises(DependencyUnavailable):
        await index_documents([Document("b", "text", version=5), Document.deletion("a", 5)], deps)
    assert await texts(index, "a") == {}


async def test_a_failed_delete_can_be_replayed(state: IngestState, deps: IndexerDependencies, redis: Redis):
    await index_documents([Document("a", "text", version=5)], deps)
    await state.dead_letters.add([of_document(Document.deletion("a", 5), "INTERNAL", "bug")])
    assert await state.dead_letters.replay(["a"], state.producer, state.collection.config) == 1
    assert await work(deps, redis) == [DELETED]
    assert await texts(deps.collection.index, "a") == {}


async def test_a_delete_with_a_text_is_rejected_alone(handler: DocumentCalls):
    [results] = await send(
        handler,
        [pb.Document(id="a", text="t", deleted=True), pb.Document(id="", deleted=True), deletion("c")],
    )
    assert outcomes(results) == [REJECTED, REJECTED, ACCEPTED]


async def test_too_many_tombstones_refuse_deletes_and_not_documents(index: Index, redis: Redis):
    full = DocumentCalls(make_ingest_state(redis, index, replace(UNLIMITED, tombstone_bytes=0)))
    with pytest.raises(Overloaded, match="too many deletes"):
        await send(full, [proto("a"), deletion("b")])
    [[result]] = await send(full, [proto("a")])
    assert result.outcome == ACCEPTED
