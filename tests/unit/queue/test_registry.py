"""Which collections an installation has, in a real Redis."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from tests.support.collections import KEYS, STATE, register
from tests.support.redis import RedisServer
from textmatch.collection_config import CollectionConfig
from textmatch.collection_roles import Roles
from textmatch.errors import CollectionNotFound
from textmatch.queue.keys import Keys
from textmatch.queue.redis_client import connect
from textmatch.queue.registry import LeaseHeld, Registry, ReindexLease

SETTINGS = CollectionConfig("faq", bi_encoder="m")


@pytest.fixture
def registry(redis: Redis) -> Registry:
    return Registry(redis, KEYS)


async def test_an_installation_has_one_id(registry: Registry, redis: Redis):
    ids = await asyncio.gather(*(Registry(redis, KEYS).installation_id() for _ in range(5)))
    assert set(ids) == {await registry.installation_id()}
    assert await Registry(redis, Keys("other")).installation_id() not in ids


async def test_a_collection_is_registered_once(registry: Registry):
    created = await asyncio.gather(*(registry.create(SETTINGS) for _ in range(5)))
    assert len({one.generation for one in created}) == 1
    assert created[0].owner == await registry.installation_id()
    assert await registry.find("faq") == created[0]
    assert await registry.all() == [created[0]]
    assert await registry.find("other") is None


async def test_collections_are_listed_by_name(registry: Registry):
    for name in ("b", "a-b", "a"):
        await registry.create(CollectionConfig(name))
    assert [one.name for one in await registry.all()] == ["a", "a-b", "b"]


async def test_a_deleted_collection_is_not_confirmed(registry: Registry):
    first = await registry.create(SETTINGS)
    await registry.confirm(first)
    assert await registry.remove(first)
    with pytest.raises(CollectionNotFound, match="faq"):
        await registry.confirm(first)
    second = await registry.create(SETTINGS)
    with pytest.raises(CollectionNotFound, match="faq"):
        await registry.confirm(first)
    assert not await registry.remove(first)
    await registry.confirm(second)


async def test_the_state_of_one_collection_goes_and_no_other(registry: Registry, redis: Redis):
    kept = [await registry.create(CollectionConfig(name)) for name in ("fa", "faq-2", "default")]
    deleted = await registry.create(SETTINGS)
    others = [*map(registry.keys_of, kept), Keys("other").collection("faq", deleted.generation)]
    for state in others:
        await redis.set(state.request("*"), 1)
    state = registry.keys_of(deleted)
    for number in range(2_500):
        await redis.set(state.request(f"文档:{number}"), 1)
    await redis.zadd(state.pending, {"a": 1})
    await registry.remove(deleted)
    await registry.delete_state(deleted)
    assert await redis.keys(f"{state.prefix}:*") == []
    assert [await redis.exists(one.request("*")) for one in others] == [1] * 4


@pytest.fixture
def leases(redis: Redis) -> list[ReindexLease]:
    return [ReindexLease(redis, STATE, ttl_seconds=1.0) for _ in range(2)]


async def test_one_process_at_a_time_changes_the_model(leases: list[ReindexLease]):
    first, second = leases
    async with first.held():
        with pytest.raises(LeaseHeld, match="another reindex of this collection is running"):
            async with second.held():
                pytest.fail("two hold the lease")
    async with second.held():
        pass


async def test_the_lease_of_a_killed_process_ends(leases: list[ReindexLease], redis: Redis):
    await redis.set(STATE.reindex_lease, "of a process that was killed", px=800)
    async with leases[0].held():
        assert await redis.get(STATE.reindex_lease) != "of a process that was killed"


async def test_a_lease_that_redis_lost_is_taken_again(leases: list[ReindexLease], redis: Redis):
    async with leases[0].held():
        await redis.delete(STATE.reindex_lease)
        await asyncio.sleep(0.5)
        assert await redis.exists(STATE.reindex_lease)


async def test_the_work_ends_when_another_process_has_taken_the_lease(
    leases: list[ReindexLease], redis: Redis
):
    async def work() -> None:
        async with leases[0].held():
            await redis.set(STATE.reindex_lease, "of another process")
            await asyncio.sleep(10)

    with pytest.raises(LeaseHeld, match="is lost"):
        await work()
    assert await redis.get(STATE.reindex_lease) == "of another process"


async def test_roles_are_changed_by_one_process_at_a_time(redis: Redis):
    record = Registry(redis, KEYS).roles_of(await register(redis))
    assert await record.read() == Roles()
    changed = await asyncio.gather(*(record.change(0, Roles(f"m{n}", epoch=1)) for n in range(5)))
    assert sorted(changed) == [False] * 4 + [True]
    first = await record.read()
    assert (first.in_use, first.epoch) == (f"m{changed.index(True)}", 1)
    assert not await record.change(0, Roles("late", epoch=1))
    assert await record.change(1, Roles("next", epoch=2))
    assert await record.read() == Roles("next", epoch=2)


async def test_a_deleted_collection_gets_no_roles(redis: Redis, registry: Registry):
    config = await register(redis)
    await registry.remove(config)
    await registry.create(replace(config, generation="", created_at=0.0))
    with pytest.raises(CollectionNotFound):
        await registry.roles_of(config).change(0, Roles("m", epoch=1))
    assert await redis.keys("*:roles") == []


async def test_roles_are_changed_while_redis_is_full(own_redis_server: RedisServer):
    redis = connect(own_redis_server.url)
    record = Registry(redis, KEYS).roles_of(await register(redis))
    own_redis_server.fill()
    # As a worker does it, whose documents free memory once there is a collection for them.
    assert await record.change(0, Roles("m", epoch=1))
    assert await record.change(1, Roles("m", next="n", epoch=2))
    assert (await record.read()).next == "n"
    await redis.aclose()
