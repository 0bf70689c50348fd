"""Tombstones of deleted documents, and of deletes by a filter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from tests.support.collections import CONFIG, KEYS, STATE, register
from tests.unit.wire.test_filters import EVERY_CONDITION
from textmatch.documents import Document
from textmatch.filters import FieldMatch, FieldRange, Filter
from textmatch.queue.clock import Request
from textmatch.queue.dead_letters import DeadLetters, of_document
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer
from textmatch.queue.tombstones import FilterTombstone, Tombstone, Tombstones

ODD = {"文档🙂": 5, "a:b c\n": 2**53 - 1, "x" * 512: 1}
RED = Filter(must=(FieldMatch("colour", ("red",)),))


@pytest.fixture
def tombstones(redis: Redis) -> Tombstones:
    return Tombstones(redis, STATE)


@pytest.fixture
async def producer(redis: Redis) -> Producer:
    await register(redis)
    return Producer(redis, KEYS)


async def filters_after(tombstones: Tombstones, accepted_us: int = 0) -> list[FilterTombstone]:
    return [one async for page in tombstones.filters.after(accepted_us) for one in page]


async def test_a_tombstone_is_found_under_any_id(tombstones: Tombstones):
    await tombstones.add(ODD, ttl_seconds=60)
    assert await tombstones.get([*ODD, "other"]) == {
        one: Tombstone(version, 0) for one, version in ODD.items()
    }
    assert await tombstones.get([]) == {}
    await tombstones.add({}, ttl_seconds=60)


async def test_a_tombstone_only_rises(tombstones: Tombstones):
    for added, kept in ((10, 10), (9, 10), (11, 11)):
        await tombstones.add({"a": added}, ttl_seconds=60)
        assert await tombstones.get(["a"]) == {"a": Tombstone(kept, 0)}
    at = await tombstones.delete(["a"], None, ttl_seconds=60)
    assert await tombstones.get(["a"]) == {"a": Tombstone(11, at)}
    await tombstones.delete(["a"], 12, ttl_seconds=60)
    assert await tombstones.get(["a"]) == {"a": Tombstone(12, at)}


async def test_a_tombstone_lives_from_the_last_delete_and_a_day_more_at_most(
    tombstones: Tombstones, redis: Redis
):
    day = 86_400
    await tombstones.add({"a": 10}, ttl_seconds=60)
    await tombstones.add({"a": 5}, ttl_seconds=7 * day)
    lives = [
        await redis.ttl(f"{STATE.tombstones}:{one}") for one in await redis.zrange(STATE.tombstones, 0, -1)
    ]
    assert 60 <= lives[0] <= 60 + day
    assert 7 * day <= lives[1] <= 8 * day
    # The last one decides how long, and the highest one what is covered.
    await redis.delete(f"{STATE.tombstones}:{(await redis.zrange(STATE.tombstones, 0, 0))[0]}")
    assert await tombstones.get(["a"]) == {"a": Tombstone(10, 0)}


async def test_days_that_are_over_are_forgotten(tombstones: Tombstones, redis: Redis):
    await redis.zadd(STATE.tombstones, {"86400": 86400})
    await tombstones.add({"a": 1}, ttl_seconds=60)
    assert await redis.zcard(STATE.tombstones) == 1


async def test_a_delete_without_a_version_takes_what_is_known(
    tombstones: Tombstones, producer: Producer, redis: Redis
):
    """It took the time as the version, so that every later version of a client's own was dropped."""
    letters, pending = DeadLetters(redis, STATE.letters), Pending(redis, STATE)
    await producer.enqueue(CONFIG, [Document("pending", "t", version=3), Document("both", "t", version=2)])
    await letters.add(
        [
            of_document(Document("failed", "t", version=4), "A", "e"),
            of_document(Document("both", "t", version=5), "A", "e"),
        ]
    )
    await tombstones.add({"deleted": 6}, ttl_seconds=60)
    ids = ["pending", "both", "failed", "deleted", "unknown"]
    at = await tombstones.delete(ids, None, ttl_seconds=60)
    versions = {one: found.version for one, found in (await tombstones.get(ids)).items()}
    assert versions == {"pending": 3, "both": 5, "failed": 4, "deleted": 6, "unknown": 0}
    assert {found.accepted_us for found in (await tombstones.get(ids)).values()} == {at}
    assert await pending.versions(ids) == {}
    assert await letters.count() == 0
    given = [Document(one, "t", version=version + 1) for one, version in versions.items()]
    assert await producer.enqueue(CONFIG, given) == [4, 6, 5, 7, 1]


async def test_a_delete_up_to_a_version_spares_newer_marks_and_letters(
    tombstones: Tombstones, producer: Producer, redis: Redis
):
    letters, pending = DeadLetters(redis, STATE.letters), Pending(redis, STATE)
    await producer.enqueue(CONFIG, [Document("a", "t", version=3), Document("b", "t", version=7)])
    await letters.add([of_document(Document("c", "t", version=7), "A", "e")])
    await tombstones.delete(["a", "b", "c"], 5, ttl_seconds=60)
    assert await pending.versions(["a", "b"]) == {"b": 7}
    assert await letters.count() == 1
    assert await tombstones.get(["b"]) == {"b": Tombstone(5, 0)}


async def test_any_version_that_was_accepted_before_is_covered(tombstones: Tombstones):
    at = await tombstones.delete(["a"], None, ttl_seconds=60)
    before, after = (
        Document("a", "t", version=9, accepted_us=at - 1),
        Document("a", "t", version=1, accepted_us=at + 1),
    )
    assert await tombstones.covering([before]) == {"a": Tombstone(0, at)}
    assert await tombstones.covering([after]) == {}


async def test_a_repeated_delete_covers_nothing_that_came_in_between(
    tombstones: Tombstones, producer: Producer
):
    request = Request("11111111-1111-1111-1111-111111111111", 60)
    await producer.enqueue(CONFIG, [Document("a", "first")])
    at = await tombstones.delete(["a"], None, ttl_seconds=60, request=request)
    known = await tombstones.get(["a"])
    await producer.enqueue(CONFIG, [Document("a", "second")])
    assert await tombstones.delete(["a"], None, ttl_seconds=60, request=request) == at
    assert await tombstones.get(["a"]) == known
    assert await tombstones.delete(["a"], None, ttl_seconds=60) > at


async def test_tombstones_of_filters_come_back_whole_and_end(tombstones: Tombstones, redis: Redis):
    everything = Filter((EVERY_CONDITION, FieldRange("n", gte=0.5, lt=float("inf"))))
    highest = 2**53 - 1
    first = await tombstones.filters.delete(everything, None, ttl_seconds=60)
    second = await tombstones.filters.delete(everything, 5, ttl_seconds=60)
    assert first < second
    found = await filters_after(tombstones)
    assert [replace(one, ttl_seconds=60) for one in found] == [
        FilterTombstone(everything, highest, first, 60),
        FilterTombstone(everything, 5, second, 60),
    ]
    assert all(50 <= one.ttl_seconds <= 60 for one in found)
    assert [one.version for one in await filters_after(tombstones, first)] == [5]
    # The same delete again replaces the earlier one.
    third = await tombstones.filters.delete(everything, None, ttl_seconds=60)
    assert [(one.version, one.accepted_us) for one in await filters_after(tombstones)] == [
        (5, second),
        (highest, third),
    ]
    ended = (await redis.zrange(STATE.filter_tombstones, 0, 0))[0]
    await redis.zadd(STATE.filter_tombstone_ends, {ended: 1})
    await tombstones.filters.delete(RED, None, ttl_seconds=60)
    assert [one.condition for one in await filters_after(tombstones)] == [everything, RED]
    assert await redis.zcard(STATE.filter_tombstone_ends) == 2


async def test_many_filters_come_in_pages(tombstones: Tombstones):
    for number in range(250):
        await tombstones.filters.delete(Filter(must=(FieldMatch("n", (number,)),)), None, ttl_seconds=3_600)
    pages = [page async for page in tombstones.filters.after(0)]
    assert [len(page) for page in pages] == [100, 100, 50]
    assert [one.condition.must[0].values for page in pages for one in page] == [
        (number,) for number in range(250)
    ]
