"""Tombstones of deleted documents."""

from __future__ import annotations

from redis.asyncio import Redis

from tests.support.collections import STATE
from textmatch.queue.tombstones import Tombstones


async def test_a_tombstone_is_found_under_any_id(redis: Redis):
    tombstones = Tombstones(redis, STATE)
    versions = {"文档🙂": 5, "a:b c\n": 2**53 - 1, "x" * 512: 1}
    await tombstones.add(versions, ttl_seconds=60)
    assert await tombstones.get([*versions, "other"]) == versions
    assert await tombstones.get([]) == {}


async def test_a_tombstone_only_rises(redis: Redis):
    tombstones = Tombstones(redis, STATE)
    await tombstones.add({"a": 10}, ttl_seconds=60)
    await tombstones.add({"a": 9}, ttl_seconds=60)
    assert await tombstones.get(["a"]) == {"a": 10}
    await tombstones.add({"a": 11}, ttl_seconds=60)
    assert await tombstones.get(["a"]) == {"a": 11}


async def test_a_tombstone_lives_from_the_last_delete(redis: Redis):
    tombstones = Tombstones(redis, STATE)
    await tombstones.add({"a": 10}, ttl_seconds=60)
    assert 0 < await redis.ttl(STATE.tombstone("a")) <= 60
    await tombstones.add({"a": 5}, ttl_seconds=600)
    assert 60 < await redis.ttl(STATE.tombstone("a")) <= 600
