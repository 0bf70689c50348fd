"""Writes and deletes that are accepted only if the document has an expected version."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import IngestState
from tests.integration.ingest.test_documents_handler import ACCEPTED, REJECTED, outcomes, proto, send, work
from tests.support.collections import STATE, close_index, make_index
from textmatch.documents import Document
from textmatch.index.index import Index
from textmatch.runtime.grpc_errors import from_status
from textmatch.v1 import matcher_service_pb2 as pb
from workers.indexer import IndexerDependencies


def expecting(document_id: str, expected: int, **fields: int) -> pb.Document:
    return pb.Document(id=document_id, text=f"after {expected}", expected_version=expected, **fields)


def deletion(document_id: str, **fields: int) -> pb.Document:
    return pb.Document(id=document_id, deleted=True, **fields)


async def outcome(handler: DocumentCalls, *documents: pb.Document) -> list[int]:
    [results] = await send(handler, [*documents])
    for result in results:
        if result.outcome == REJECTED:
            assert type(from_status(result.error)).__name__ == "VersionMismatch"
    return outcomes(results)


async def test_a_document_is_created_once(handler: DocumentCalls, deps: IndexerDependencies, redis: Redis):
    assert await outcome(handler, expecting("a", 0), expecting("b", 0), expecting("a", 0)) == [
        ACCEPTED,
        ACCEPTED,
        REJECTED,
    ]
    # Also while it is queued, and when it is stored, with the same content too.
    assert await outcome(handler, expecting("a", 0)) == [REJECTED]
    await work(deps, redis)
    assert await outcome(handler, expecting("a", 0), expecting("c", 0)) == [REJECTED, ACCEPTED]


async def test_a_write_counts_only_above_the_version_that_it_expects(
    handler: DocumentCalls, deps: IndexerDependencies, index: Index, redis: Redis
):
    await send(handler, [proto("a", version=5)])
    assert await outcome(handler, expecting("a", 4), expecting("a", 6)) == [REJECTED, REJECTED]
    assert await outcome(handler, expecting("a", 5, version=6)) == [ACCEPTED]
    await work(deps, redis)
    assert await outcome(handler, expecting("a", 5)) == [REJECTED]
    [[result]] = await send(handler, [expecting("a", 6)])
    assert result.outcome == ACCEPTED
    assert result.version > 6
    await work(deps, redis)
    assert (await index.fetch(["a"]))["a"].document.version == result.version
    # A version that is not higher would never count.
    [[result]] = await send(handler, [expecting("a", 7, version=7)])
    assert "expected_version: is 7" in result.error.message


async def test_what_is_deleted_does_not_exist(
    handler: DocumentCalls, deps: IndexerDependencies, index: Index, redis: Redis
):
    await send(handler, [proto("a", version=5), proto("b", version=5), proto("c", version=5)])
    await work(deps, redis)
    # `a` is still stored then.
    assert await outcome(handler, deletion("a", expected_version=4)) == [REJECTED]
    assert await outcome(handler, deletion("a", expected_version=5)) == [ACCEPTED]
    assert await outcome(handler, expecting("a", 5), expecting("a", 0)) == [REJECTED, ACCEPTED]
    await handler.delete(pb.DeleteDocumentsRequest(ids=["b"]))
    assert await outcome(handler, expecting("b", 5), expecting("b", 0, version=6)) == [REJECTED, ACCEPTED]
    everything = pb.Filter(must=[pb.Condition(has_id=pb.HasId(ids=["c"]))])
    await handler.delete(pb.DeleteDocumentsRequest(filter=everything))
    assert await outcome(handler, expecting("c", 5), expecting("c", 0)) == [REJECTED, ACCEPTED]
    await work(deps, redis)
    assert set(await index.fetch(["a", "b", "c"])) == {"a", "b", "c"}


async def test_of_many_at_the_same_time_one_is_accepted(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    for _ in range(3):
        [[known]] = await send(handler, [proto("a", "again")])
        tries = await asyncio.gather(*(outcome(handler, expecting("a", known.version)) for _ in range(10)))
        assert sorted(tries) == [[ACCEPTED]] + [[REJECTED]] * 9
        await work(deps, redis)
    tries = await asyncio.gather(*(outcome(handler, expecting("new", 0)) for _ in range(10)))
    assert sorted(tries) == [[ACCEPTED]] + [[REJECTED]] * 9


class BusyIndex:
    """Something else happens just after the index was read."""

    def __init__(self, real: Index, happens: Callable[[], object]) -> None:
        self._real = real
        self._happens = happens

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    async def fingerprints(self, ids: list[str]) -> object:
        found = await self._real.fingerprints(ids)
        await self._happens()  # type: ignore[misc]
        return found


@pytest.mark.parametrize("change", ["write", "queued delete", "delete", "versioned delete", "filter"])
async def test_a_change_between_reading_and_acceptance_is_noticed(
    handler: DocumentCalls,
    state: IngestState,
    deps: IndexerDependencies,
    index: Index,
    redis: Redis,
    change: str,
):
    """The change is accepted, applied and no longer pending when the write is decided."""
    await send(handler, [proto("a", version=5)])
    await work(deps, redis)

    async def happens() -> None:
        if change == "write":
            await send(handler, [proto("a", "other", version=6)])
        elif change == "queued delete":
            await send(handler, [deletion("a")])
        elif change == "filter":
            everything = pb.Filter(must=[pb.Condition(has_id=pb.HasId(ids=["a"]))])
            await handler.delete(pb.DeleteDocumentsRequest(filter=everything))
        else:
            version = 5 if change == "versioned delete" else None
            await handler.delete(pb.DeleteDocumentsRequest(ids=["a"], version=version))
        await work(deps, redis)

    busy = replace(state.collection, index=BusyIndex(index, happens))
    assert await outcome(DocumentCalls(replace(state, collection=busy)), expecting("a", 5)) == [REJECTED]
    assert await redis.llen("textmatch.ingest") == 0


async def test_a_retry_has_the_answer_of_the_first_try(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    request_id = str(uuid.uuid4())

    async def attempt() -> list[tuple[int, int]]:
        async def requests() -> AsyncIterator[pb.IngestDocumentsRequest]:
            documents = [expecting("a", 0), expecting("b", 3)]
            yield pb.IngestDocumentsRequest(documents=documents, request_id=request_id)

        [response] = [one async for one in handler.ingest(requests())]
        return [(result.outcome, result.version) for result in response.results]

    first = await attempt()
    assert [one for one, _ in first] == [ACCEPTED, REJECTED]
    await work(deps, redis)
    await send(handler, [proto("b", version=3)])
    assert await attempt() == first


async def test_while_qdrant_is_down_nobody_knows(state: IngestState):
    index = make_index("http://127.0.0.1:1")
    down = DocumentCalls(replace(state, collection=replace(state.collection, index=index)))
    [results] = await send(down, [expecting("a", 0), proto("b"), expecting("c", 1)])
    assert outcomes(results) == [REJECTED, ACCEPTED, REJECTED]
    error = from_status(results[0].error)
    assert error.is_transient
    assert "not known" in str(error)
    [results] = await send(down, [expecting("a", 0)])
    assert outcomes(results) == [REJECTED]
    await close_index(index)


async def test_what_the_first_try_could_not_decide_is_decided_by_the_next(
    handler: DocumentCalls, state: IngestState
):
    """A part of the request was accepted then, and the client sends the rest again."""
    request_id = str(uuid.uuid4())
    index = make_index("http://127.0.0.1:1")
    down = DocumentCalls(replace(state, collection=replace(state.collection, index=index)))

    async def attempt(calls: DocumentCalls, *documents: pb.Document) -> list[int]:
        async def requests() -> AsyncIterator[pb.IngestDocumentsRequest]:
            yield pb.IngestDocumentsRequest(documents=documents, request_id=request_id)

        [response] = [one async for one in calls.ingest(requests())]
        return outcomes(list(response.results))

    documents = expecting("new", 0), expecting("known", 0), deletion("known", expected_version=4), proto("b")
    assert await attempt(down, *documents) == [REJECTED] * 3 + [ACCEPTED]
    await close_index(index)
    await send(handler, [proto("known", version=5)])
    for _ in range(2):
        assert await attempt(handler, *documents[:3]) == [ACCEPTED, REJECTED, REJECTED]


async def test_watches_are_few_and_end(handler: DocumentCalls, state: IngestState, redis: Redis):
    assert await outcome(handler, expecting("a", 0), expecting("b", 7)) == [ACCEPTED, REJECTED]
    assert set(await redis.hgetall(STATE.watches)) == {"b"}
    assert 0 < await redis.ttl(STATE.watches) <= 60
    first = await state.pending.watch(["b", "c"])
    again = await state.pending.watch(["b", "c"])
    assert {one: watch.mark for one, watch in first.items()} == {
        one: watch.mark for one, watch in again.items()
    }
    assert again["b"].since_us > first["b"].since_us
    await state.producer.enqueue(state.collection.config, [Document("b", "t")])
    assert (await state.pending.watch(["b"]))["b"].mark > first["b"].mark
