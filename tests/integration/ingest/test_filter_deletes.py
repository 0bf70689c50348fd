"""Deletes by a filter reach what is still queued, and spare what does not fit or is newer."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import IngestState
from tests.support.collections import CONFIG
from tests.support.queue import take_queued
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable, InvalidInput
from textmatch.filters import FieldExists, FieldMatch, Filter
from textmatch.index import index as index_module
from textmatch.index.index import Index
from textmatch.queue.producer import Refusal
from textmatch.v1 import matcher_service_pb2 as pb
from workers.indexer import DocumentOutcome, IndexerDependencies, index_documents

CHINESE = pb.Filter(
    must=[pb.Condition(match=pb.FieldMatch(field="language", values=[{"string_value": "zh"}]))]
)
INDEXED, DELETED = DocumentOutcome.INDEXED, DocumentOutcome.DELETED
UNCHANGED = DocumentOutcome.UNCHANGED_TEXT


def document(language: str, version: int, document_id: str = "a") -> Document:
    return Document(document_id, f"text {version}", {"language": language}, version)


async def delete(handler: DocumentCalls, version: int | None = None, condition: pb.Filter = CHINESE) -> int:
    request = pb.DeleteDocumentsRequest(filter=condition, version=version)
    return (await handler.delete(request)).deleted_count


async def stored_version(deps: IndexerDependencies) -> int | None:
    found = (await deps.collection.index.fetch(["a"])).get("a")
    return found.document.version if found else None


async def test_queued_documents_are_deleted_once_they_are_written(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies, redis: Redis
):
    await state.producer.enqueue(CONFIG, [document("zh", 5), document("en", 5, "b"), document("zh", 50, "c")])
    assert await delete(handler, version=10) == 0
    queued = await take_queued(redis)
    assert await index_documents(queued, deps) == [DELETED, INDEXED, INDEXED]
    assert set(await deps.collection.index.fetch(["a", "b", "c"])) == {"b", "c"}
    # A redelivery brings nothing back.
    assert await index_documents(queued, deps) == [DELETED, UNCHANGED, UNCHANGED]
    status = await handler.status(pb.GetIngestStatusRequest(document_id="a"))
    assert status.document_state == pb.DOCUMENT_STATE_DELETED
    assert status.queued_count == 0


async def deliver(deps: IndexerDependencies, *documents: Document) -> list[DocumentOutcome]:
    """Each in a batch of its own, as if accepted before all deletes."""
    return [
        outcome
        for document in documents
        for outcome in await index_documents([replace(document, accepted_us=1)], deps)
    ]


@pytest.mark.parametrize("version", [10, None])
@pytest.mark.parametrize("order", [(3, 5), (5, 3), (3, 5, 3), (5, 3, 5)])
async def test_what_is_deleted_depends_on_the_newest_version_only(
    handler: DocumentCalls,
    deps: IndexerDependencies,
    order: tuple[int, ...],
    version: int | None,
):
    newest_is_chinese = {3: document("en", 3), 5: document("zh", 5)}
    await index_documents([document("fr", 1)], deps)
    await delete(handler, version)
    await deliver(deps, *(newest_is_chinese[version] for version in order))
    assert await stored_version(deps) is None


@pytest.mark.parametrize("version", [10, None])
async def test_a_queued_version_that_does_not_fit_survives(
    handler: DocumentCalls, deps: IndexerDependencies, version: int | None
):
    await index_documents([document("zh", 3)], deps)
    assert await delete(handler, version) == 1
    assert await deliver(deps, document("en", 5), document("zh", 3)) == [INDEXED, DELETED]
    assert await stored_version(deps) == 5


async def test_a_newer_version_than_that_of_the_delete_stays(
    handler: DocumentCalls, deps: IndexerDependencies
):
    await index_documents([document("en", 1, "b")], deps)
    await delete(handler, version=10)
    assert await index_documents([document("zh", 11)], deps) == [INDEXED]


async def test_a_dry_run_counts_and_deletes_nothing(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies
):
    await index_documents([document("zh", 3), document("zh", 5, "b"), document("en", 5, "c")], deps)
    for request, count in (
        (pb.DeleteDocumentsRequest(filter=CHINESE), 2),
        (pb.DeleteDocumentsRequest(filter=CHINESE, version=4), 1),
        (pb.DeleteDocumentsRequest(ids=["a", "c", "missing"]), 2),
    ):
        request.dry_run = True
        assert (await handler.delete(request)).deleted_count == count
        assert [page async for page in state.tombstones.filters.after(0)] == []
        assert set(await deps.collection.index.fetch(["a", "b", "c"])) == {"a", "b", "c"}
        request.dry_run = False
        assert (await handler.delete(pb.DeleteDocumentsRequest(ids=["missing"]))).deleted_count == 0
    assert await delete(handler) == 2


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("is_dry_run", [False, True])
async def test_a_filter_without_conditions_deletes_nothing(
    handler: DocumentCalls, depth: int, is_dry_run: bool
):
    condition = pb.Filter()
    for _ in range(depth):
        condition = pb.Filter(must=[pb.Condition(filter=condition)])
    with pytest.raises(InvalidInput, match="filter: is empty; it would delete every document"):
        await handler.delete(pb.DeleteDocumentsRequest(filter=condition, dry_run=is_dry_run))


@pytest.mark.parametrize("version", [10, None])
async def test_documents_of_any_version_that_come_after_the_delete_stay(
    handler: DocumentCalls,
    state: IngestState,
    deps: IndexerDependencies,
    redis: Redis,
    version: int | None,
):
    """A new document with a version of its own was removed for seven days, because the time is higher."""
    await index_documents([document("zh", 3, "old")], deps)
    assert await delete(handler, version) == 1
    await state.producer.enqueue(CONFIG, [document("zh", 7), document("zh", 2, "b")])
    assert await index_documents(await take_queued(redis), deps) == [INDEXED, INDEXED]
    # What was deleted stays deleted.
    assert await state.producer.enqueue(CONFIG, [document("zh", 3, "old")]) == [Refusal.DELETED]


async def test_a_delete_without_a_version_takes_all_versions_that_came_before(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies, redis: Redis
):
    highest = 2**53 - 1
    await index_documents([document("zh", highest)], deps)
    await state.producer.enqueue(CONFIG, [document("zh", highest, "queued")])
    assert await delete(handler) == 1
    assert await index_documents(await take_queued(redis), deps) == [DELETED]


async def test_a_delete_that_ended_early_is_completed_by_its_next_try(
    handler: DocumentCalls,
    state: IngestState,
    deps: IndexerDependencies,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
):
    """A million documents take longer than a client waits."""
    monkeypatch.setattr(index_module, "PAGE", 2)
    await index_documents([document("zh", 3, f"d{number}") for number in range(6)], deps)
    real, calls = state.tombstones.add, 0

    async def add(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise DependencyUnavailable("Redis does not answer", retry_delay_seconds=1.0)
        await real(*arguments)

    monkeypatch.setattr(state.tombstones, "add", add)
    request = pb.DeleteDocumentsRequest(filter=CHINESE, request_id=str(uuid.uuid4()))
    with pytest.raises(DependencyUnavailable):
        await handler.delete(request)
    assert await deps.collection.index.count() == 4
    await state.producer.enqueue(CONFIG, [document("zh", 7, "in between")])
    assert await index_documents(await take_queued(redis), deps) == [INDEXED]
    assert (await handler.delete(request)).deleted_count == 4
    assert await deps.collection.index.count() == 1


async def test_what_a_running_delete_removes_before_its_worker_looks_stays_deleted(
    handler: DocumentCalls,
    state: IngestState,
    deps: IndexerDependencies,
    monkeypatch: pytest.MonkeyPatch,
):
    """Without a tombstone of its own, an older version that does not match the filter came back."""
    await index_documents([document("fr", 1, "other")], deps)
    await delete(handler)
    index = deps.collection.index
    real = index.find_versions_of

    async def find(ids: Any, conditions: Any) -> dict[str, int]:
        await index.delete_matching(conditions[0])
        return await real(ids, conditions)

    monkeypatch.setattr(index, "find_versions_of", find)
    newest = replace(document("zh", 5), accepted_us=1)
    with pytest.raises(DependencyUnavailable, match="a delete by a filter is running"):
        await index_documents([newest], deps)
    monkeypatch.undo()
    assert await index_documents([newest], deps) == [DELETED]
    await deliver(deps, document("en", 3))
    assert await stored_version(deps) is None


class CountedIndex:
    """Counts the searches for documents that a delete covers."""

    def __init__(self, real: Index) -> None:
        self._real = real
        self.searches = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def find_versions_of(self, *arguments: Any) -> dict[str, int]:
        self.searches += 1
        return await self._real.find_versions_of(*arguments)


async def make_filter_deletes(state: IngestState, count: int) -> None:
    deletes = (
        state.tombstones.filters.delete(Filter(must=(FieldMatch("n", (number,)),)), None, ttl_seconds=600)
        for number in range(count)
    )
    await asyncio.gather(*deletes)


async def test_documents_pay_only_for_deletes_that_came_while_they_waited(
    state: IngestState, deps: IndexerDependencies, redis: Redis
):
    """64 documents took 0.2 s without deletes, and 7.5 s after 4,000 deletes."""
    counted = CountedIndex(deps.collection.index)
    deps = replace(deps, collection=replace(deps.collection, index=cast("Index", counted)))
    await index_documents([document("en", 1, "first")], deps)
    await make_filter_deletes(state, 300)
    await state.producer.enqueue(CONFIG, [document("en", 1, f"after {number}") for number in range(64)])
    assert await index_documents(await take_queued(redis), deps) == [INDEXED] * 64
    assert counted.searches == 0
    waiting = [
        replace(document("en", 1, f"before {number}"), attributes={"n": 1_000 + number})
        for number in range(63)
    ]
    covered = replace(document("en", 1, "covered"), attributes={"n": [299, 5]})
    await state.producer.enqueue(CONFIG, [*waiting, covered])
    await make_filter_deletes(state, 300)
    assert await index_documents(await take_queued(redis), deps) == [INDEXED] * 63 + [DELETED]
    # One for each page of filters.
    assert counted.searches == 3


async def test_a_filter_that_qdrant_cannot_read_is_refused_and_not_remembered(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies
):
    await index_documents([document("en", 1)], deps)
    unreadable = pb.Filter(must=[pb.Condition(exists=pb.FieldExists(field='a"b'))])
    with pytest.raises(InvalidInput):
        await delete(handler, version=10, condition=unreadable)
    assert [page async for page in state.tombstones.filters.after(0)] == []


async def test_a_filter_that_can_no_longer_be_applied_is_neither_skipped_nor_held_against_a_document(
    state: IngestState, deps: IndexerDependencies
):
    unreadable = Filter(must=(FieldExists('a"b'),))
    await state.tombstones.filters.delete(unreadable, None, ttl_seconds=60)
    with pytest.raises(DependencyUnavailable, match="the filter of a delete cannot be applied"):
        await index_documents([document("en", 1)], deps)
