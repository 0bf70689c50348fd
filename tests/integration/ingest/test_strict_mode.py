"""A Qdrant that refuses filters on payload keys without an index, as Qdrant Cloud does by default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import IngestState
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.support.collections import CONFIG, client_of, empty_qdrant, register
from tests.support.qdrant import URL, running_qdrant
from tests.support.queue import take_queued
from textmatch.collection_config import CollectionConfig, PayloadIndex
from textmatch.documents import Document
from textmatch.errors import InvalidInput
from textmatch.v1 import matcher_service_pb2 as pb
from workers.indexer import DocumentOutcome, IndexerDependencies, index_documents

INDEXED = replace(CONFIG, payload_indexes=(PayloadIndex("language", "keyword"),))


def documents(version: int) -> list[Document]:
    return [Document(name, f"text {name}", {"language": name[:2]}, version) for name in ("en1", "en2", "zh1")]


def match(field: str, value: str) -> pb.Filter:
    return pb.Filter(must=[pb.Condition(match=pb.FieldMatch(field=field, values=[{"string_value": value}]))])


@pytest.fixture(scope="module")
def qdrant_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if URL:
        pytest.skip("TEXTMATCH_QDRANT_URL names a server that need not be strict")
    with running_qdrant(tmp_path_factory.mktemp("strict"), is_strict=True) as url:
        yield url


@pytest.fixture
async def collection(qdrant_url: str, redis: Redis) -> CollectionConfig:
    await empty_qdrant(qdrant_url)
    return await register(redis, INDEXED)


async def stored(deps: IndexerDependencies) -> set[str]:
    return set(await deps.collection.index.fetch([one.id for one in documents(1)]))


async def test_documents_are_written_and_deleted_by_id(handler: DocumentCalls, deps: IndexerDependencies):
    await index_documents(documents(1), deps)
    await index_documents(documents(2), deps)
    assert (await handler.delete(pb.DeleteDocumentsRequest(ids=["en1"]))).deleted_count == 1
    assert await stored(deps) == {"en2", "zh1"}


async def test_queued_deletes_are_applied(deps: IndexerDependencies):
    await index_documents(documents(1), deps)
    deletes = [Document.deletion("en1", 1), replace(Document.deletion("en2"), accepted_us=2)]
    assert await index_documents(deletes, deps) == [DocumentOutcome.DELETED] * 2
    assert await stored(deps) == {"zh1"}


async def test_queued_writes_of_deleted_documents_are_settled(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies, redis: Redis
):
    await index_documents(documents(1), deps)
    await state.producer.enqueue(INDEXED, documents(2))
    await handler.delete(pb.DeleteDocumentsRequest(ids=["en1"], version=3))
    await handler.delete(pb.DeleteDocumentsRequest(filter=match("language", "zh"), version=3))
    queued = await take_queued(redis)
    deleted, written = DocumentOutcome.DELETED, DocumentOutcome.UNCHANGED_TEXT
    assert await index_documents(queued, deps) == [deleted, written, deleted]
    assert await stored(deps) == {"en2"}


async def test_a_filter_on_an_attribute_without_an_index_is_refused_by_name(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies
):
    await index_documents(documents(1), deps)
    with pytest.raises(InvalidInput, match="author"):
        await handler.delete(pb.DeleteDocumentsRequest(filter=match("author", "x"), version=3))
    assert [page async for page in state.tombstones.filters.after(0)] == []


async def test_an_existing_collection_gets_the_indexes(
    deps: IndexerDependencies, encoder: ScriptedEncoder, handler: DocumentCalls
):
    await index_documents(documents(1), deps)
    index = deps.collection.index
    physical = INDEXED.physical(encoder.model_id)
    for field in ("version", "accepted_us"):
        await client_of(index).delete_payload_index(physical, field, wait=True)
    index.close()
    assert (await handler.delete(pb.DeleteDocumentsRequest(ids=["en1"], version=3))).deleted_count == 1
