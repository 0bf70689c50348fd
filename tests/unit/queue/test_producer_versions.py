"""The versions that the clock in Redis gives, for several matchers whose own clocks mean nothing."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest
from redis.asyncio import Redis

from tests.support.collections import CONFIG, KEYS, STATE, register
from tests.support.queue import take_queued
from textmatch.documents import MAX_VERSION, Document
from textmatch.queue.clock import Request
from textmatch.queue.dead_letters import DeadLetters, of_document
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer, Refusal, Submission
from textmatch.queue.tombstones import Tombstones

HOUR_US = 3_600_000_000
A, B = Document("a", "t"), Document("b", "t")


@pytest.fixture
async def producer(redis: Redis) -> Producer:
    await register(redis)
    return Producer(redis, KEYS)


def request() -> Request:
    return Request(str(uuid.uuid4()), 60)


async def test_one_version_for_all_but_the_later_of_an_id_wins(producer: Producer, redis: Redis):
    first, *others = await producer.enqueue(CONFIG, [A, B, A, Document("c", "t", version=7), A])
    assert others == [first, first + 1, 7, first + 2]
    assert [one.version for one in await take_queued(redis)] == [first, *others]
    assert await producer.enqueue(CONFIG, [A]) > [first + 2]


async def test_versions_are_the_time_of_redis_and_only_rise(
    producer: Producer, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    seconds, microseconds = await redis.time()
    monkeypatch.setattr(time, "time", lambda: 5.0)
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000_000)
    [version] = await producer.enqueue(CONFIG, [A])
    assert 0 <= version - (seconds * 1_000_000 + microseconds) < 60_000_000
    # The clock of the server was set back by an hour.
    await redis.set(STATE.clock, version + HOUR_US)
    assert await producer.enqueue(CONFIG, [B]) == [version + HOUR_US + 1]
    assert await producer.enqueue(CONFIG, [B, B, B]) == [version + HOUR_US + one for one in (2, 3, 4)]
    assert await producer.enqueue(CONFIG, [Document("c", "t")]) == [version + HOUR_US + 5]


async def test_many_matchers_share_the_clock(producer: Producer, redis: Redis):
    others = [producer, *(Producer(redis, KEYS) for _ in range(3))]
    versions = await asyncio.gather(*(one.enqueue(CONFIG, [A, A]) for one in others for _ in range(10)))
    assert len({version for pair in versions for version in pair}) == 80


async def test_versions_are_above_what_is_pending_deleted_or_stored(producer: Producer, redis: Redis):
    """Otherwise a write without a version is dropped as older, though it came later."""
    high, tombstones = 2**52, Tombstones(redis, STATE)
    await producer.enqueue(CONFIG, [Document("a", "t", version=high)])
    assert await producer.enqueue(CONFIG, [A]) == [high + 1]
    await tombstones.add({"b": high}, ttl_seconds=60)
    [version, other] = await producer.enqueue(CONFIG, [B, Document("c", "t")], Submission({"c": high + 5}))
    assert (version, other) == (high + 1, high + 6)
    # Versions of clients do not move the clock.
    [usual] = await producer.enqueue(CONFIG, [Document("d", "t")])
    assert usual < high
    assert await producer.enqueue(CONFIG, [Document("e", "t", version=high), Document("e", "t")]) == [
        high,
        high + 1,
    ]


async def test_what_a_tombstone_covers_is_refused_and_not_queued(producer: Producer, redis: Redis):
    await Tombstones(redis, STATE).add({"a": 5}, ttl_seconds=60)
    documents = [Document("a", "t", version=version) for version in (4, 5, 6)]
    assert await producer.enqueue(CONFIG, [*documents, B]) == [
        Refusal.DELETED,
        Refusal.DELETED,
        6,
        (await Pending(redis, STATE).versions(["b"]))["b"],
    ]
    assert [(one.id, one.version) for one in await take_queued(redis)][:1] == [("a", 6)]
    assert await Pending(redis, STATE).versions(["a"]) == {"a": 6}
    assert await producer.enqueue(CONFIG, documents[:2]) == [Refusal.DELETED] * 2
    assert await redis.llen(KEYS.queue) == 0


async def test_no_version_is_left_above_the_highest(producer: Producer):
    assert await producer.enqueue(CONFIG, [Document("a", "t", version=MAX_VERSION)]) == [MAX_VERSION]
    [refused, accepted] = await producer.enqueue(CONFIG, [A, B])
    assert (refused, accepted > 0) == (Refusal.EXHAUSTED, True)


async def test_every_try_of_a_request_has_the_versions_of_the_first(producer: Producer, redis: Redis):
    high = 2**52
    await producer.enqueue(CONFIG, [Document("high", "t", version=high)])
    await Tombstones(redis, STATE).add({"gone": 5}, ttl_seconds=60)
    documents = [
        A,
        Document("high", "t"),
        Document("gone", "t", version=5),
        Document("own", "t", version=3),
        A,
    ]
    submission = Submission({}, request())
    first = await producer.enqueue(CONFIG, documents, submission)
    assert first[1:4] == [high + 1, Refusal.DELETED, 3]
    await take_queued(redis)
    # Another client writes and deletes in between.
    [between] = await producer.enqueue(CONFIG, [A])
    await Tombstones(redis, STATE).delete(["a", "own"], None, ttl_seconds=60)
    await take_queued(redis)
    again = await producer.enqueue(CONFIG, documents, submission)
    assert again == first
    assert between > max(first[0], first[4])
    redelivered = await take_queued(redis)
    covered = await Tombstones(redis, STATE).covering([one for one in redelivered if one.id in ("a", "own")])
    assert set(covered) == {"a", "own"}
    # A part of the request may be left over.
    assert await producer.enqueue(CONFIG, documents[1:3], submission) == first[1:3]
    assert await producer.enqueue(CONFIG, [A], Submission({}, request())) > [between]


async def test_tries_at_the_same_time_at_several_matchers_have_one_version(producer: Producer, redis: Redis):
    submission = Submission({}, request())
    tries = (Producer(redis, KEYS).enqueue(CONFIG, [A, B], submission) for _ in range(20))
    assert len({tuple(versions) for versions in await asyncio.gather(*tries)}) == 1


async def test_a_request_is_forgotten_after_its_time(producer: Producer, redis: Redis):
    one = request()
    await producer.enqueue(CONFIG, [A], Submission({}, one))
    assert 0 < await redis.ttl(STATE.request(one.id)) <= 60
    await producer.enqueue(CONFIG, [B])
    assert len([key async for key in redis.scan_iter(STATE.request("*"))]) == 1


async def test_a_replay_has_the_version_and_the_time_of_the_first_acceptance(
    producer: Producer, redis: Redis
):
    letters = DeadLetters(redis, STATE.letters)
    [version] = await producer.enqueue(CONFIG, [A])
    [document] = await take_queued(redis)
    await letters.add([of_document(document, "A", "e")])
    assert await letters.replay(["a"], producer, CONFIG) == 1
    [replayed] = await take_queued(redis)
    assert (replayed, replayed.version, replayed.accepted_us) == (document, version, document.accepted_us)
