"""Redis decides the roles of collections, Qdrant follows, and what one has lost is taken from the other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.integration.reindex.conftest import OpenDeps
from tests.integration.reindex.contents import by_id, contents
from tests.support.collections import STATE, client_of, close_index, make_index, register, roles_of
from tests.support.redis import RedisServer
from textmatch.collection_config import CollectionConfig
from textmatch.collection_roles import CollectionRole, Roles
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable
from textmatch.index.client import CollectionGone
from textmatch.index.index import Index
from textmatch.queue.redis_client import connect
from workers.indexer import IndexerDependencies, index_documents

FIRST = Document("a", "first", version=1)
SECOND = Document("b", "second", version=1)
THIRD = Document("c", "third", version=1)


@pytest.fixture
async def ingested(deps: IndexerDependencies) -> IndexerDependencies:
    await index_documents([FIRST], deps)
    return deps


async def aliases(index: Index) -> dict[str, str]:
    """Model id by alias."""
    config = index.collections.config
    found = (await client_of(index).get_aliases()).aliases
    return {one.alias_name: config.model_of(one.collection_name) for one in found}


async def set_back(redis: Redis, roles: Roles) -> None:
    """What Redis has after it has lost some changes."""
    await redis.set(STATE.roles, json.dumps(roles.to_mapping()))


async def test_the_aliases_follow_every_change(ingested: IndexerDependencies, old: str, new: str):
    index = ingested.collection.index
    assert await aliases(index) == {"default": old}
    await index.roles.start(new, 8)
    assert await aliases(index) == {"default": old, "default--next": new}
    await index.roles.promote(CollectionRole.NEXT, in_use=old)
    assert await aliases(index) == {"default": new, "default--previous": old}
    await index.roles.abandon(CollectionRole.PREVIOUS)
    assert await aliases(index) == {"default": new, "default--abandoned": old}
    await index.roles.drop(old)
    assert await aliases(index) == {"default": new}


async def test_the_aliases_follow_a_change_whose_process_died(
    ingested: IndexerDependencies, redis: Redis, old: str, new: str
):
    index = ingested.collection.index
    await index.roles.start(new, 8)
    roles = await index.collections.refresh_roles()
    await set_back(redis, Roles(new, previous=old, epoch=roles.epoch + 1))
    await index_documents([SECOND], ingested)
    assert await aliases(index) == {"default": new, "default--previous": old}
    assert await contents(index, new) == by_id([SECOND])


@pytest.mark.parametrize("is_fresh", [True, False])
async def test_a_switch_that_redis_has_lost_loses_no_document(
    ingested: IndexerDependencies, open_deps: OpenDeps, redis: Redis, old: str, new: str, is_fresh: bool
):
    index = ingested.collection.index
    before = await index.collections.refresh_roles()
    await index.roles.start(new, 8)
    await index_documents([SECOND], ingested)
    await index.roles.promote(CollectionRole.NEXT, in_use=old)
    lost = await index.collections.refresh_roles()
    await set_back(redis, before)
    # A worker that has just started knows of it by Qdrant, another one remembers.
    async with open_deps() as other:
        await index_documents([THIRD], other if is_fresh else ingested)
    roles = await index.collections.refresh_roles()
    assert roles == Roles(old, abandoned=new, epoch=lost.epoch + 1)
    assert await aliases(index) == {"default": old, "default--abandoned": new}
    assert await contents(index, old) == by_id([FIRST, SECOND, THIRD])


async def test_without_a_record_the_roles_are_those_that_qdrant_shows(
    ingested: IndexerDependencies, open_deps: OpenDeps, redis: Redis, old: str, new: str
):
    await ingested.collection.index.roles.start(new, 8)
    await redis.delete(STATE.roles)
    async with open_deps() as other:
        assert await roles_of(other.collection.index) == Roles(old, next=new)
    assert json.loads(await redis.get(STATE.roles))["next"] == new


async def test_a_built_collection_that_an_operator_has_deleted_is_forgotten(
    ingested: IndexerDependencies, index: Index, old: str, new: str
):
    await ingested.collection.index.roles.start(new, 8)
    await client_of(index).delete_collection(index.collections.config.physical(new))
    with pytest.raises(CollectionGone):
        await index_documents([SECOND], ingested)
    await index_documents([SECOND], ingested)
    assert await roles_of(index) == Roles(old)
    assert await ingested.collection.index.delete({"b": 1}) == 1


async def test_after_qdrant_was_emptied_the_next_write_makes_a_collection(
    ingested: IndexerDependencies, open_deps: OpenDeps, index: Index, old: str
):
    await client_of(index).delete_collection(index.collections.config.physical(old))
    async with open_deps() as other:
        assert await other.collection.index.delete({"a": 1}) == 0
        await index_documents([SECOND], other)
        assert await roles_of(other.collection.index) == Roles(old)
    assert await contents(index, old) == by_id([SECOND])


@pytest.fixture
async def apart(
    qdrant_url: str, own_redis_server: RedisServer, collection: CollectionConfig
) -> AsyncIterator[Index]:
    """An index whose roles are in a Redis that the test may stop."""
    redis = connect(own_redis_server.url)
    await register(redis)
    index = make_index(qdrant_url, collection, redis)
    yield index
    await close_index(index)
    await redis.aclose()


async def test_readers_go_on_without_redis_and_writers_wait(
    ingested: IndexerDependencies, apart: Index, own_redis_server: RedisServer, old: str
):
    assert set(await apart.fetch(["a"])) == {"a"}
    own_redis_server.kill()
    apart.collections.forget_roles()
    assert set(await apart.fetch(["a"])) == {"a"}
    assert await apart.model_in_use() == old
    with pytest.raises(DependencyUnavailable):
        await apart.delete({"a": 1})
    own_redis_server.start()
    apart.collections.forget_roles()
    assert await apart.model_in_use() == old
