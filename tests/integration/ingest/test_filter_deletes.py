"""Deletes by a filter reach what is still queued, and spare what does not fit or is newer."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import IngestState
from tests.support.collections import CONFIG, STATE
from tests.support.queue import take_queued
from tests.unit.wire.test_filters import EVERY_CONDITION
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable, InvalidInput
from textmatch.filters import FieldExists, FieldRange, Filter
from textmatch.queue.tombstones import FilterTombstone
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


@pytest.mark.parametrize("order", [(3, 5), (5, 3), (3, 5, 3), (5, 3, 5)])
async def test_what_is_deleted_depends_on_the_newest_version_only(
    handler: DocumentCalls, deps: IndexerDependencies, order: tuple[int, ...]
):
    newest_is_chinese = {3: document("en", 3), 5: document("zh", 5)}
    await delete(handler, version=10)
    for version in order:
        await index_documents([newest_is_chinese[version]], deps)
    assert await stored_version(deps) is None


async def test_a_queued_version_that_does_not_fit_survives(handler: DocumentCalls, deps: IndexerDependencies):
    await index_documents([document("zh", 3)], deps)
    assert await delete(handler, version=10) == 1
    assert await index_documents([document("en", 5)], deps) == [INDEXED]
    assert await index_documents([document("zh", 3)], deps) == [DELETED]
    assert await stored_version(deps) == 5


async def test_documents_that_come_after_the_delete_stay(handler: DocumentCalls, deps: IndexerDependencies):
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
        assert await state.tombstones.filters.from_version(1) == []
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


async def test_a_filter_that_qdrant_cannot_read_is_refused_and_not_remembered(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies
):
    await index_documents([document("en", 1)], deps)
    unreadable = pb.Filter(must=[pb.Condition(exists=pb.FieldExists(field='a"b'))])
    with pytest.raises(InvalidInput):
        await delete(handler, version=10, condition=unreadable)
    assert await state.tombstones.filters.from_version(1) == []


async def test_a_filter_that_can_no_longer_be_applied_is_neither_skipped_nor_held_against_a_document(
    state: IngestState, deps: IndexerDependencies
):
    unreadable = Filter(must=(FieldExists('a"b'),))
    await state.tombstones.filters.add(FilterTombstone(unreadable, 10, 60))
    with pytest.raises(DependencyUnavailable, match="the filter of a delete cannot be applied"):
        await index_documents([document("en", 1)], deps)


async def test_tombstones_come_back_whole_and_end(state: IngestState, redis: Redis):
    everything = Filter((EVERY_CONDITION, FieldRange("n", gte=0.5, lt=float("inf"))))
    filters = state.tombstones.filters
    highest = 2**53 - 1
    await filters.add(FilterTombstone(everything, highest, 60))
    await filters.add(FilterTombstone(everything, 5, 60))
    [tombstone] = await filters.from_version(highest)
    assert (tombstone.condition, tombstone.version) == (everything, highest)
    await filters.add(FilterTombstone(Filter(must=(FieldExists("x"),)), 7, 0))
    assert len(await filters.from_version(1)) == 1
    await filters.add(FilterTombstone(Filter(must=(FieldExists("y"),)), 8, 60))
    assert await redis.zcard(STATE.filter_tombstones) == 2
