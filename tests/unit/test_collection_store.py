"""Finding collections in a real Redis; Qdrant is not asked for that."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from tests.support.collections import KEYS
from tests.support.redis import RedisServer
from textmatch.collection_config import CollectionConfig
from textmatch.collection_store import CollectionStore
from textmatch.errors import CollectionNotFound, DependencyUnavailable, InvalidInput
from textmatch.queue.redis_client import connect
from textmatch.queue.registry import Registry

_UNTOUCHED = cast("Any", None)


@pytest.fixture
def registry(redis: Redis) -> Registry:
    return Registry(redis, KEYS)


@pytest.fixture
def store(redis: Redis) -> CollectionStore:
    return CollectionStore(redis, _UNTOUCHED, KEYS)


async def test_one_creation_is_one_object(store: CollectionStore, registry: Registry):
    config = await registry.create(CollectionConfig("faq"))
    first = await store.get("faq")
    assert first.config == config
    assert await store.get("faq") is first
    assert await store.current("faq") is first
    assert await store.for_write("faq") is first


async def test_writes_see_a_new_creation_at_once_and_reads_after_them(
    store: CollectionStore, registry: Registry
):
    old = await registry.create(CollectionConfig("faq"))
    await store.get("faq")
    await registry.remove(old)
    new = await registry.create(CollectionConfig("faq"))
    assert (await store.get("faq")).config == old
    assert (await store.for_write("faq")).config == new
    assert (await store.get("faq")).config == new
    await registry.remove(new)
    with pytest.raises(CollectionNotFound):
        await store.current("faq")
    with pytest.raises(CollectionNotFound):
        await store.get("faq")


async def test_default_is_empty_before_it_is_made(store: CollectionStore, registry: Registry):
    empty = await store.get("")
    assert (empty.name, empty.config.generation) == ("default", "")
    made = await registry.create(CollectionConfig())
    assert (await store.get("default")).config == made


async def test_impossible_names_are_not_looked_up(store: CollectionStore):
    for find in (store.get, store.current, store.for_write, store.delete, store.adopt):
        with pytest.raises(InvalidInput, match="collection"):
            await find("No!")


async def test_reads_go_on_without_redis_and_writes_do_not(own_redis_server: RedisServer):
    redis = connect(own_redis_server.url)
    await Registry(redis, KEYS).create(CollectionConfig("faq"))
    store = CollectionStore(redis, _UNTOUCHED, KEYS)
    known = await store.get("faq")
    own_redis_server.kill()
    # Longer than the copy is fresh.
    await asyncio.sleep(2.1)
    async with asyncio.timeout(1.5):
        assert await store.get("faq") is known
        assert await store.get("faq") is known
    with pytest.raises(DependencyUnavailable):
        await store.for_write("faq")
    with pytest.raises(DependencyUnavailable):
        await store.get("other")
    await redis.aclose()


async def test_what_was_not_used_for_long_is_closed(redis: Redis, registry: Registry):
    store = CollectionStore(redis, _UNTOUCHED, KEYS, max_open=2)
    for name in ("a", "b", "c"):
        await registry.create(CollectionConfig(name))
    first = await store.get("a")
    second = await store.get("b")
    assert await store.get("a") is first
    await store.get("c")
    assert await store.get("a") is first
    assert await store.get("b") is not second
    store.close()
    assert await store.get("a") is not first
