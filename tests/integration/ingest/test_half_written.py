"""Writes that one of two copies refuses: they fail, stay on the other copy, and must be sent again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import make_ingest_state
from tests.integration.ingest.scripted_encoder import DIMENSION, ScriptedEncoder, embedding_of
from tests.integration.qdrant.edge_process import EdgeProcess
from tests.support.collections import CONFIG, close_index, empty_qdrant, make_index
from tests.support.queue import mark
from tests.support.replicated_qdrant import ReplicatedQdrant, shard_of
from textmatch.collection_config import CollectionConfig
from textmatch.documents import Document, point_id
from textmatch.errors import DependencyUnavailable
from textmatch.index.index import Index
from textmatch.indexing import Copier
from textmatch.reindex.sync import CollectionSync, Migration
from textmatch.v1 import matcher_service_pb2 as pb
from workers.indexer import DocumentOutcome, DualWriter, IndexerDependencies, index_documents
from workers.retrying_indexer import AcceptedDocument, RetryingIndexer

DOCUMENTS = [Document(f"文档🙂{number}", f"text {number}", {"n": number}, 5) for number in range(3)]
BOTH_READS = pytest.mark.parametrize("read_from", [0, 1])


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    copies = [EdgeProcess(tmp_path_factory.mktemp("copy")) for _ in range(2)]
    for copy in copies:
        copy.start()
    yield copies[0].port, copies[1].port
    for copy in copies:
        assert copy.stop() == 0


@pytest.fixture
async def qdrant(ports: tuple[int, int]) -> AsyncIterator[ReplicatedQdrant]:
    for port in ports:
        await empty_qdrant(f"http://127.0.0.1:{port}")
    replicated = ReplicatedQdrant(ports)
    await replicated.start()
    yield replicated
    await replicated.stop()


@pytest.fixture
async def copies(ports: tuple[int, int], collection: CollectionConfig) -> AsyncIterator[list[Index]]:
    """Each copy by itself."""
    indexes = [make_index(f"http://127.0.0.1:{port}", collection) for port in ports]
    yield indexes
    for index in indexes:
        await close_index(index)


@pytest.fixture
async def deps(
    deps: IndexerDependencies, qdrant: ReplicatedQdrant, collection: CollectionConfig, redis: Redis
) -> AsyncIterator[IndexerDependencies]:
    index = make_index(qdrant.url, collection, redis)
    copier = Copier(index, deps.encoder, deps.collection.tombstones, 10.0)
    replicated = replace(deps.collection, index=index)
    dual_writer = DualWriter(index, copier, unserved_seconds=60.0)
    yield replace(deps, collection=replicated, dual_writer=dual_writer)
    await close_index(index)


class NoProgress:
    """Progress that nobody watches."""

    def stage(self, name: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass


async def assert_held(copy: Index, collection: str, documents: list[Document]) -> None:
    stored = await copy.points(collection).fetch([one.id for one in documents], with_embeddings=True)
    assert {one.document.id: one.document for one in stored.values()} == {one.id: one for one in documents}
    for one in stored.values():
        assert one.embedding is not None
        assert np.allclose(one.embedding, embedding_of(one.document.text, collection)[0], atol=1e-5)


@BOTH_READS
async def test_a_half_written_batch_is_sent_to_both_copies_again(
    deps: IndexerDependencies,
    qdrant: ReplicatedQdrant,
    copies: list[Index],
    encoder: ScriptedEncoder,
    read_from: int,
):
    qdrant.refuses = lambda copy, _: copy == 1
    with pytest.raises(DependencyUnavailable, match="shards failed"):
        await index_documents(DOCUMENTS, deps)
    await assert_held(copies[0], encoder.model_id, DOCUMENTS)
    assert await copies[1].points(encoder.model_id).count() == 0

    qdrant.refuses = lambda copy, _: False
    qdrant.read_from = read_from
    expected = DocumentOutcome.UNCHANGED_TEXT if read_from == 0 else DocumentOutcome.INDEXED
    assert await index_documents(DOCUMENTS, deps) == [expected] * 3
    for copy in copies:
        await assert_held(copy, encoder.model_id, DOCUMENTS)


@BOTH_READS
async def test_a_half_written_update_is_sent_to_both_copies_again(
    deps: IndexerDependencies,
    qdrant: ReplicatedQdrant,
    copies: list[Index],
    encoder: ScriptedEncoder,
    read_from: int,
):
    await index_documents(DOCUMENTS, deps)
    newer = [replace(one, text="newer", version=6) for one in DOCUMENTS]
    qdrant.refuses = lambda copy, _: copy == 1
    with pytest.raises(DependencyUnavailable):
        await index_documents(newer, deps)
    await assert_held(copies[1], encoder.model_id, DOCUMENTS)
    qdrant.refuses = lambda copy, _: False
    qdrant.read_from = read_from
    await index_documents(newer, deps)
    # A later delivery of the older version changes neither copy.
    assert await index_documents(DOCUMENTS, deps) == [DocumentOutcome.STALE] * 3
    for copy in copies:
        await assert_held(copy, encoder.model_id, newer)


@BOTH_READS
async def test_a_worker_waits_for_the_refusing_copy_and_settles_only_then(
    deps: IndexerDependencies,
    qdrant: ReplicatedQdrant,
    copies: list[Index],
    encoder: ScriptedEncoder,
    read_from: int,
):
    qdrant.refuses = lambda copy, _: copy == 1
    qdrant.read_from = read_from
    indexer = RetryingIndexer(30.0)
    accepted = [AcceptedDocument(one, time.time()) for one in DOCUMENTS]
    settling = asyncio.create_task(indexer.settle(accepted, deps))
    async with asyncio.timeout(20):
        while not await copies[0].fetch([DOCUMENTS[0].id]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert not settling.done()
    qdrant.refuses = lambda copy, _: False
    await settling
    assert await deps.collection.dead_letters.count() == 0
    for copy in copies:
        await assert_held(copy, encoder.model_id, DOCUMENTS)


@BOTH_READS
async def test_a_half_written_dual_write_is_sent_to_both_copies_again(
    deps: IndexerDependencies,
    qdrant: ReplicatedQdrant,
    copies: list[Index],
    encoder: ScriptedEncoder,
    read_from: int,
):
    await index_documents(DOCUMENTS[:1], deps)
    target = f"new-{encoder.model_id}"
    encoder.other_model_ids = (target,)
    await deps.collection.index.roles.start(target, DIMENSION)
    qdrant.refuses = lambda copy, collection: copy == 1 and collection == CONFIG.physical(target)
    with pytest.raises(DependencyUnavailable):
        await index_documents(DOCUMENTS, deps)
    await assert_held(copies[0], target, DOCUMENTS)
    assert await copies[1].points(target).count() == 0
    qdrant.refuses = lambda copy, _: False
    qdrant.read_from = read_from
    await index_documents(DOCUMENTS, deps)
    for copy in copies:
        await assert_held(copy, target, DOCUMENTS)


@BOTH_READS
async def test_a_delete_of_a_half_written_document_reaches_both_copies(
    deps: IndexerDependencies,
    qdrant: ReplicatedQdrant,
    copies: list[Index],
    encoder: ScriptedEncoder,
    read_from: int,
):
    qdrant.refuses = lambda copy, _: copy == 1
    with pytest.raises(DependencyUnavailable):
        await index_documents(DOCUMENTS, deps)
    qdrant.refuses = lambda copy, _: False
    qdrant.read_from = read_from
    await deps.collection.tombstones.add({one.id: 9 for one in DOCUMENTS}, ttl_seconds=60)
    assert await index_documents(DOCUMENTS, deps) == [DocumentOutcome.DELETED] * 3
    for copy in copies:
        assert await copy.points(encoder.model_id).count() == 0


@BOTH_READS
@pytest.mark.parametrize("version", [0, 9])
async def test_a_half_applied_queued_delete_is_sent_to_both_copies_again(
    deps: IndexerDependencies,
    qdrant: ReplicatedQdrant,
    copies: list[Index],
    encoder: ScriptedEncoder,
    read_from: int,
    version: int,
):
    await index_documents(DOCUMENTS, deps)
    deletes = [replace(Document.deletion(one.id, version), accepted_us=2) for one in DOCUMENTS]
    qdrant.refuses = lambda copy, _: copy == 1
    with pytest.raises(DependencyUnavailable):
        await index_documents(deletes, deps)
    assert await copies[0].points(encoder.model_id).count() == 0
    await assert_held(copies[1], encoder.model_id, DOCUMENTS)
    qdrant.refuses = lambda copy, _: False
    qdrant.read_from = read_from
    assert await index_documents(deletes, deps) == [DocumentOutcome.DELETED] * 3
    for copy in copies:
        assert await copy.points(encoder.model_id).count() == 0


@BOTH_READS
async def test_a_half_applied_delete_by_filter_is_completed_by_the_next(
    deps: IndexerDependencies,
    qdrant: ReplicatedQdrant,
    copies: list[Index],
    encoder: ScriptedEncoder,
    redis: Redis,
    read_from: int,
):
    await index_documents(DOCUMENTS, deps)
    handler = DocumentCalls(make_ingest_state(redis, deps.collection.index))
    request = pb.DeleteDocumentsRequest(
        filter=pb.Filter(must=[pb.Condition(exists=pb.FieldExists(field="n"))]), version=9
    )
    qdrant.refuses = lambda copy, _: copy == 1
    with pytest.raises(DependencyUnavailable):
        await handler.delete(request)
    assert await copies[0].points(encoder.model_id).count() == 0
    await assert_held(copies[1], encoder.model_id, DOCUMENTS)
    qdrant.refuses = lambda copy, _: False
    qdrant.read_from = read_from
    await handler.delete(request)
    for copy in copies:
        assert await copy.points(encoder.model_id).count() == 0


async def test_documents_of_complete_shards_are_settled_while_others_wait(
    deps: IndexerDependencies, qdrant: ReplicatedQdrant, copies: list[Index], encoder: ScriptedEncoder
):
    await index_documents([Document("first", "makes the collection")], deps)
    documents = [Document(f"d{number}", f"text {number}", version=5) for number in range(16)]
    of_shard = {shard: [one for one in documents if shard_of(point_id(one.id)) == shard] for shard in (0, 1)}
    assert all(of_shard.values())
    await mark(deps.collection.pending, {one.id: one.version for one in documents}, accepted_at=1.0)
    qdrant.missing_shards = {1}
    indexer = RetryingIndexer(60.0)
    accepted = [AcceptedDocument(one, time.time()) for one in documents]
    settling = asyncio.create_task(indexer.settle(accepted, deps))
    waiting = {one.id: one.version for one in of_shard[1]}
    async with asyncio.timeout(20):
        while await deps.collection.pending.versions([one.id for one in documents]) != waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert not settling.done()
    await assert_held(copies[1], encoder.model_id, of_shard[0])
    qdrant.missing_shards = set()
    await settling
    for copy in copies:
        await assert_held(copy, encoder.model_id, documents)
    assert await deps.collection.dead_letters.count() == 0


@BOTH_READS
async def test_a_reindex_that_ended_after_a_half_written_copy_is_completed_by_the_next(
    deps: IndexerDependencies,
    qdrant: ReplicatedQdrant,
    copies: list[Index],
    encoder: ScriptedEncoder,
    read_from: int,
):
    await index_documents(DOCUMENTS, deps)
    target = f"new-{encoder.model_id}"
    encoder.other_model_ids = (target,)
    index = deps.collection.index
    await index.roles.start(target, DIMENSION)
    migration = Migration(encoder.model_id, target)
    copier = Copier(index, deps.encoder, deps.collection.tombstones, 10.0)
    qdrant.refuses = lambda copy, collection: copy == 1 and collection == CONFIG.physical(target)
    with pytest.raises(DependencyUnavailable):
        await copier.copy([one.id for one in DOCUMENTS], source=migration.source, target=target)
    qdrant.refuses = lambda copy, _: False
    qdrant.read_from = read_from
    await CollectionSync(index, copier, migration, NoProgress(), None).run_until_equal()
    for copy in copies:
        await assert_held(copy, target, DOCUMENTS)
