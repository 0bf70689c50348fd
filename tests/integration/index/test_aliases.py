"""Replacing the collection in use, over the real Qdrant engine."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import numpy as np
import pytest

from tests.support.collections import close_index, make_index, roles_of, unique_config
from textmatch.collection_config import CollectionConfig
from textmatch.collection_roles import CollectionRole, Roles
from textmatch.documents import Document
from textmatch.index.client import CollectionGone
from textmatch.index.index import Index

DIMENSION = 4


@pytest.fixture
def config() -> CollectionConfig:
    return unique_config()


@pytest.fixture
def old() -> str:
    return f"old-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def new() -> str:
    return f"new-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def index(qdrant_url: str, config: CollectionConfig, old: str) -> AsyncIterator[Index]:
    connected = make_index(qdrant_url, config)
    await connected.collections.prepare(old, DIMENSION)
    yield connected
    await close_index(connected)


async def write(index: Index, collection: str, *documents: Document) -> None:
    rows = np.eye(DIMENSION, dtype=np.float32)[[0] * len(documents)]
    await index.upsert(documents, rows, model_id=collection)


async def test_a_change_and_the_way_back(index: Index, old: str, new: str):
    await index.roles.start(new, DIMENSION)
    assert await roles_of(index) == Roles(in_use=old, next=new)
    assert await index.roles.promote(CollectionRole.NEXT, in_use=old)
    assert await roles_of(index) == Roles(in_use=new, previous=old)
    assert await index.roles.promote(CollectionRole.PREVIOUS, in_use=new)
    assert await roles_of(index) == Roles(in_use=old, previous=new)
    await index.roles.drop(new)
    assert await roles_of(index) == Roles(in_use=old)


async def test_another_reader_follows_within_the_time_of_its_cache(
    index: Index, qdrant_url: str, config: CollectionConfig, old: str, new: str
):
    reader = make_index(qdrant_url, config)
    assert await reader.model_in_use() == old
    await index.roles.start(new, DIMENSION)
    await index.roles.promote(CollectionRole.NEXT, in_use=old)
    assert await reader.model_in_use() == old
    assert await reader.refresh_model_in_use() == new
    await close_index(reader)


async def test_what_is_abandoned_cannot_be_put_to_use(index: Index, old: str, new: str):
    await index.roles.start(new, DIMENSION)
    assert await index.roles.abandon(CollectionRole.NEXT)
    assert not await index.roles.promote(CollectionRole.NEXT, in_use=old)
    assert await roles_of(index) == Roles(in_use=old, abandoned=new)
    assert not await index.roles.abandon(CollectionRole.NEXT)


async def test_what_is_abandoned_can_be_taken_up_again(index: Index, old: str, new: str):
    await index.roles.start(new, DIMENSION)
    await index.roles.abandon(CollectionRole.NEXT)
    await index.roles.start(new, DIMENSION)
    assert await roles_of(index) == Roles(in_use=old, next=new)


async def test_starting_again_keeps_what_is_there(index: Index, new: str):
    await index.roles.start(new, DIMENSION)
    await write(index, new, Document("a", "text", version=1))
    await index.roles.start(new, DIMENSION)
    assert await index.points(new).versions(["a"]) == {"a": 1}


async def test_deletes_reach_the_collections_beside_the_one_in_use(
    index: Index, qdrant_url: str, config: CollectionConfig, old: str, new: str
):
    deleter = make_index(qdrant_url, config)
    # From now on it knows of the old collection only, as long as it does not ask.
    assert (await deleter.collections.roles()).dual_write_targets == ()
    await index.roles.start(new, DIMENSION)
    for collection in (old, new):
        await write(index, collection, Document("a", "text", version=1), Document("b", "text", version=3))
    assert await deleter.delete({"a": 2, "b": 2}) == 1
    assert await index.points(old).versions(["a", "b"]) == {"b": 3}
    assert await index.points(new).versions(["a", "b"]) == {"b": 3}
    await index.roles.promote(CollectionRole.NEXT, in_use=old)
    assert await deleter.delete({"b": 3}) == 1
    assert await index.points(old).count() == await index.points(new).count() == 0
    await close_index(deleter)


async def test_reads_through_a_stale_alias_find_the_successor(
    index: Index, qdrant_url: str, config: CollectionConfig, old: str, new: str
):
    reader = make_index(qdrant_url, config)
    assert await reader.model_in_use() == old
    await index.roles.start(new, DIMENSION)
    await write(index, new, Document("a", "text", version=1))
    await index.roles.promote(CollectionRole.NEXT, in_use=old)
    await index.roles.drop(old)
    assert set(await reader.fetch(["a"])) == {"a"}
    await close_index(reader)


async def test_a_collection_that_is_gone_is_named(index: Index, new: str):
    with pytest.raises(CollectionGone, match=new):
        await index.points(new).count()


async def test_walking_and_sampling(index: Index, old: str):
    documents = [Document(f"文档{number}", f"text {number}", version=number + 1) for number in range(1_500)]
    await write(index, old, *documents)
    first = await index.points(old).page(None)
    second = await index.points(old).page(first.next_position)
    assert (len(first.versions), len(second.versions), second.next_position) == (1_000, 500, None)
    assert first.versions | second.versions == {document.id: document.version for document in documents}
    texts = await index.points(old).sample(20)
    assert len(set(texts)) == 20
    assert set(texts) < {document.text for document in documents}
