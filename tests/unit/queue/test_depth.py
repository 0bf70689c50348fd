"""The size and the age of the queue, for messages of all producers."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from celery import Celery
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from tests.support.collections import CONFIG, KEYS, STATE, register
from tests.support.redis import RedisServer
from textmatch.documents import Document
from textmatch.queue.dead_letters import DeadLetters, of_document
from textmatch.queue.depth import QueueDepth, QueueGauges
from textmatch.queue.messages import TASK_NAME
from textmatch.queue.producer import Producer
from textmatch.queue.tombstones import Tombstones


def gauge(name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(f"textmatch_{name}", labels)
    assert value is not None
    return value


def send(server: RedisServer, seconds_ago: float = 0.0, **options: int) -> None:
    """As a Celery application of somebody else does."""
    documents = [{"id": "a", "text": "t", "version": 1}]
    message = {"schema_version": 2, "accepted_at": time.time() - seconds_ago, "documents": documents}
    with Celery(broker=server.url, set_as_current=False) as app:
        app.send_task(TASK_NAME, args=[json.dumps(message)], queue=KEYS.queue, **options)


async def test_a_backlog_of_other_producers_is_seen(redis_server: RedisServer, redis: Redis):
    """Both figures that workers are scaled by were read from marks that such messages do not have."""
    await register(redis)
    gauges = QueueGauges(redis, KEYS)
    await gauges.sample()
    assert (gauge("ingest_backlog_documents"), gauge("ingest_backlog_seconds")) == (0, 0)
    for priority in (0, 3, 6, 9):
        send(redis_server, seconds_ago=100.0 + priority, priority=priority)
    send(redis_server, countdown=1_000)
    await gauges.sample()
    assert gauge("ingest_backlog_documents") == 5
    assert 109 <= gauge("ingest_backlog_seconds") < 150
    assert gauge("ingest_queue_documents", collection="default") == 0
    assert (await QueueDepth(redis, KEYS).measure()).size_bytes > 5 * 300


async def test_what_a_dead_worker_holds_belongs_to_the_backlog(redis: Redis):
    await redis.hset(KEYS.unacked, "tag", "message")
    depth = await QueueDepth(redis, KEYS).measure()
    assert (depth.documents, depth.backlog) == (0, 1)


@pytest.mark.parametrize("message", ["", "\ufffd", b"\xff\xfe", "{}", '{"accepted_us": -5, "versions": []}'])
async def test_what_cannot_be_read_has_no_age_and_hides_none(redis: Redis, message: str | bytes):
    await register(redis)
    await redis.rpush(KEYS.queue, message)
    assert await QueueDepth(redis, KEYS).oldest_seconds() == 0.0
    await Producer(redis, KEYS).replay(CONFIG, Document("a", "t", version=1, accepted_us=1))
    await redis.lmove(KEYS.queue, KEYS.taken, "LEFT", "LEFT")
    assert await QueueDepth(redis, KEYS).oldest_seconds() > 1e9


async def test_what_is_kept_after_the_queue_is_measured(redis: Redis):
    await register(redis)
    other = replace(CONFIG, name="faq", generation="89abcdef")
    await register(redis, other)
    gauges = QueueGauges(redis, KEYS)
    await gauges.sample()
    assert (gauge("tombstone_bytes"), gauge("dead_letter_bytes")) == (0, 0)
    await Tombstones(redis, STATE).add({"a": 1}, 60)
    await Tombstones(redis, KEYS.collection("faq", "89abcdef")).add({"a": 1}, 60)
    await DeadLetters(redis, STATE.letters).add(
        [of_document(Document("a", "x" * 5_000, version=1), "A", "e")]
    )
    await gauges.sample()
    assert 100 < gauge("tombstone_bytes") < 1_000
    assert 5_000 < gauge("dead_letter_bytes") < 20_000
