"""Marks of documents that are accepted and not settled."""

from __future__ import annotations

import time

import pytest
from redis.asyncio import Redis

from tests.support.collections import KEYS, STATE
from tests.support.queue import mark
from textmatch.queue.pending import Pending

ODD_IDS = ["文档🙂", "a b\n\t:{}*?", "é" * 256, "0", "-1"]


@pytest.fixture
def pending(redis: Redis) -> Pending:
    return Pending(redis, STATE)


async def test_a_mark_stays_until_its_version_is_settled(pending: Pending):
    await mark(pending, {"a": 10}, accepted_at=100.0)
    await pending.clear({"a": 9})
    assert await pending.versions(["a", "b"]) == {"a": 10}
    await pending.clear({"a": 10})
    assert await pending.versions(["a"]) == {}
    assert (await pending.summary()).count == 0


async def test_versions_up_to_the_limit_are_told_apart(pending: Pending):
    highest = 2**53 - 1
    await mark(pending, {"a": highest}, accepted_at=1.0)
    await pending.clear({"a": highest - 1})
    assert await pending.versions(["a"]) == {"a": highest}
    await pending.clear({"a": highest})
    assert await pending.versions(["a"]) == {}


async def test_any_id_can_be_marked(pending: Pending):
    versions = {document_id: number + 1 for number, document_id in enumerate(ODD_IDS)}
    await mark(pending, versions, accepted_at=1.0)
    assert await pending.versions(ODD_IDS) == versions
    await pending.clear(versions)
    assert await pending.versions(ODD_IDS) == {}


async def redis_time(redis: Redis) -> float:
    seconds, microseconds = await redis.time()
    return seconds + microseconds / 1e6


async def test_the_age_is_that_of_the_oldest_that_waits(pending: Pending, redis: Redis):
    assert (await pending.summary()).oldest_seconds == 0.0
    now = await redis_time(redis)
    await mark(pending, {"a": 1}, accepted_at=now - 1_000.0)
    await mark(pending, {"b": 1}, accepted_at=now - 500.0)
    summary = await pending.summary()
    assert summary.count == 2
    assert 1_000.0 <= summary.oldest_seconds < 1_100.0
    await pending.clear({"a": 1})
    assert 500.0 <= (await pending.summary()).oldest_seconds < 600.0
    await pending.clear({"b": 1})
    await mark(pending, {"of the future": 1}, accepted_at=now + 1_000.0)
    assert (await pending.summary()).oldest_seconds == 0.0


async def test_an_age_is_not_less_than_the_time_since_the_acceptance_was_known(
    pending: Pending, redis: Redis
):
    """One who begins to wait then compares both, and must not take a new document for a later one."""
    for _ in range(50):
        await mark(pending, {"a": 1}, accepted_at=await redis_time(redis))
        began = time.monotonic()
        asked = time.monotonic()
        assert (await pending.summary()).oldest_seconds > asked - began
        await pending.clear({"a": 1})


@pytest.mark.parametrize("held_in", [KEYS.queue, KEYS.taken, KEYS.unacked, None])
async def test_marks_are_orphans_only_when_no_message_is_left(
    pending: Pending, redis: Redis, held_in: str | None
):
    now = await redis_time(redis)
    await mark(pending, {"old": 1}, accepted_at=now - 300.0)
    await mark(pending, {"new": 1}, accepted_at=now - 100.0)
    if held_in == KEYS.unacked:
        await redis.hset(held_in, "tag", "message")
    elif held_in:
        await redis.lpush(held_in, "message")
    dropped = await pending.drop_orphans(200.0, KEYS)
    assert dropped == (0 if held_in else 1)
    assert set(await pending.versions(["old", "new"])) == ({"old", "new"} if held_in else {"new"})
