"""Putting documents into the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.support.queue import take_queued
from tests.support.redis import RedisServer
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable
from textmatch.queue import keys
from textmatch.queue.app import make_app
from textmatch.queue.connection import connect
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer


@pytest.fixture
async def producer(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Producer]:
    made = Producer(make_app(redis_server.url), Pending(redis))
    yield made
    await made.close()


async def test_documents_are_marked_and_published_in_order(producer: Producer, redis: Redis):
    documents = [Document(f"文档🙂{number}", "text", {"n": number}, number + 1) for number in range(150)]
    await producer.enqueue(documents)
    assert await redis.llen(keys.QUEUE) == 3
    assert await take_queued(redis) == documents
    assert await Pending(redis).versions(["文档🙂0", "文档🙂149"]) == {"文档🙂0": 1, "文档🙂149": 150}


async def test_of_a_repeated_id_the_highest_version_is_marked(producer: Producer, redis: Redis):
    await producer.enqueue([Document("a", "t", version=5), Document("a", "t", version=3)])
    assert await Pending(redis).versions(["a"]) == {"a": 5}


async def test_it_fails_quickly_while_redis_is_down_and_works_after(own_redis_server: RedisServer):
    redis = connect(own_redis_server.url)
    pending = Pending(redis)
    producer = Producer(make_app(own_redis_server.url), pending)
    await producer.enqueue([Document("a", "t", version=1)])
    own_redis_server.kill()
    async with asyncio.timeout(5):
        with pytest.raises(DependencyUnavailable, match="Redis"):
            await producer.enqueue([Document("b", "t", version=1)])
    own_redis_server.start()
    await producer.enqueue([Document("c", "t", version=1)])
    assert [document.id for document in await take_queued(redis)] == ["a", "c"]
    assert set(await pending.versions(["a", "b", "c"])) == {"a", "c"}
    await producer.close()
    await redis.aclose()


async def test_marks_are_undone_when_publishing_fails(
    own_redis_server: RedisServer, redis_server: RedisServer
):
    redis = connect(redis_server.url)
    pending = Pending(redis)
    await pending.mark({"known": 1}, accepted_at=1.0)
    own_redis_server.kill()
    producer = Producer(make_app(own_redis_server.url), pending)
    with pytest.raises(DependencyUnavailable, match="Redis"):
        await producer.enqueue([Document("known", "t", version=2), Document("new", "t", version=2)])
    assert await pending.versions(["known", "new"]) == {"known": 1}
    await producer.close()
    await redis.aclose()
    own_redis_server.start()


async def test_a_cancelled_caller_leaves_no_mark_without_its_message(producer: Producer, redis: Redis):
    enqueuing = asyncio.ensure_future(producer.enqueue([Document("a", "t", version=1)]))
    await asyncio.sleep(0)
    enqueuing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await enqueuing
    await producer.close()
    assert await redis.llen(keys.QUEUE) == 1
    assert await Pending(redis).versions(["a"]) == {"a": 1}
