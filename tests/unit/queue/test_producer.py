"""Putting documents into the queue."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.collections import CONFIG, KEYS, STATE, register
from tests.support.queue import take_queued
from tests.support.redis import RedisServer
from textmatch.documents import Document
from textmatch.errors import CollectionNotFound, DependencyUnavailable
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer
from textmatch.queue.redis_client import connect


@pytest.fixture
async def producer(redis: Redis) -> Producer:
    await register(redis)
    return Producer(redis, KEYS)


async def test_documents_are_marked_and_published_in_order(producer: Producer, redis: Redis):
    documents = [Document(f"文档🙂{number}", "text", {"n": number}, number + 1) for number in range(600)]
    await producer.enqueue(CONFIG, documents)
    assert await redis.llen(KEYS.queue) == 3
    assert await take_queued(redis) == documents
    assert await Pending(redis, STATE).versions(["文档🙂0", "文档🙂149"]) == {"文档🙂0": 1, "文档🙂149": 150}


async def test_the_highest_version_stays_marked(producer: Producer, redis: Redis):
    pending = Pending(redis, STATE)
    await producer.enqueue(CONFIG, [Document("a", "t", version=5), Document("a", "t", version=3)])
    assert await pending.versions(["a"]) == {"a": 5}
    accepted_at = await redis.zscore(STATE.pending, "a")
    await producer.enqueue(CONFIG, [Document("a", "t", version=4)])
    assert await pending.versions(["a"]) == {"a": 5}
    assert await redis.zscore(STATE.pending, "a") == accepted_at
    assert [document.version for document in await take_queued(redis)] == [5, 3, 4]


async def test_it_fails_quickly_while_redis_is_down_and_works_after(own_redis_server: RedisServer):
    redis = connect(own_redis_server.url)
    await register(redis)
    pending, producer = Pending(redis, STATE), Producer(redis, KEYS)
    await producer.enqueue(CONFIG, [Document("a", "t", version=1)])
    own_redis_server.kill()
    async with asyncio.timeout(5):
        with pytest.raises(DependencyUnavailable, match="Redis"):
            await producer.enqueue(CONFIG, [Document("b", "t", version=1)])
    own_redis_server.start()
    await producer.enqueue(CONFIG, [Document("c", "t", version=1)])
    assert [document.id for document in await take_queued(redis)] == ["a", "c"]
    assert set(await pending.versions(["a", "b", "c"])) == {"a", "c"}
    await redis.aclose()


async def test_a_full_redis_takes_all_of_a_step_or_nothing(own_redis_server: RedisServer):
    redis = connect(own_redis_server.url)
    await register(redis)
    producer = Producer(redis, KEYS)
    await producer.enqueue(CONFIG, [Document("known", "t", version=1)])
    own_redis_server.fill()
    refused = [Document("known", "t", version=2), Document("new", "x" * 200, version=2)]
    with pytest.raises(DependencyUnavailable, match="maxmemory") as caught:
        await producer.enqueue(CONFIG, refused * 100)
    assert caught.value.retry_delay_seconds
    with pytest.raises(DependencyUnavailable, match="maxmemory"):
        await producer.publish(["raw"])
    assert await redis.llen(KEYS.queue) == 1
    assert await Pending(redis, STATE).versions(["known", "new"]) == {"known": 1}
    own_redis_server.make_room()
    await producer.enqueue(CONFIG, refused)
    assert await Pending(redis, STATE).versions(["known", "new"]) == {"known": 2, "new": 2}
    await redis.aclose()


async def test_a_large_call_goes_in_steps_and_what_is_left_out_can_be_sent_again(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    redis = connect(own_redis_server.url)
    await register(redis)
    pending, producer = Pending(redis, STATE), Producer(redis, KEYS)
    documents = [Document(f"d{number}", "好" * 10_000, version=1) for number in range(60)]
    enqueue = producer._enqueue
    step_bytes: list[int] = []

    async def one_step(*, args: list[str], **keywords: Any) -> Any:
        step_bytes.append(sum(len(str(one)) for one in args))
        is_enqueued = await enqueue(args=args, **keywords)
        if len(step_bytes) == 1:
            own_redis_server.fill()
        return is_enqueued

    monkeypatch.setattr(producer, "_enqueue", one_step)
    with pytest.raises(DependencyUnavailable, match="maxmemory"):
        await producer.enqueue(CONFIG, documents)
    own_redis_server.make_room()
    queued = await take_queued(redis)
    assert 0 < len(queued) < len(documents)
    assert queued == documents[: len(queued)]
    assert (await pending.summary()).count == len(queued)
    await producer.enqueue(CONFIG, documents)
    assert await take_queued(redis) == documents
    assert (await pending.summary()).count == len(documents)
    assert len(step_bytes) > 4
    assert max(step_bytes) < 1.1 * 1024**2
    await redis.aclose()


async def test_a_cancelled_caller_leaves_no_mark_without_its_message(redis_server: RedisServer, redis: Redis):
    await register(redis)
    # It is cancelled while it connects.
    unconnected = connect(redis_server.url)
    producer = Producer(unconnected, KEYS)
    enqueuing = asyncio.ensure_future(producer.enqueue(CONFIG, [Document("a", "t", version=1)]))
    await asyncio.sleep(0)
    enqueuing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await enqueuing
    messages = await redis.llen(KEYS.queue)
    assert len(await Pending(redis, STATE).versions(["a"])) == messages
    await unconnected.aclose()


async def test_nothing_is_enqueued_for_a_collection_that_was_deleted(producer: Producer, redis: Redis):
    outdated = replace(CONFIG, generation="89abcdef")
    for deleted in (outdated, replace(CONFIG, name="never-made")):
        with pytest.raises(CollectionNotFound, match=deleted.name):
            await producer.enqueue(deleted, [Document("a", "t", version=1)])
    assert await redis.llen(KEYS.queue) == 0
    assert await Pending(redis, STATE).versions(["a"]) == {}
    assert await redis.keys("*:89abcdef:*") == []
