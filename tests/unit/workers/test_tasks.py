"""What becomes of a message when things around the pipeline fail."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from tests.support.collections import CONFIG, KEYS, STATE, register
from tests.support.redis import RedisServer
from textmatch.collection_store import CollectionStore
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.messages import Envelope
from textmatch.queue.redis_client import connect
from workers import metrics, tasks
from workers.tasks import Leases, MessageHandler

UNREADABLE = "not a message"


def make_handler(redis: Redis) -> MessageHandler:
    """One that never gets as far as the index."""
    leases = Leases(redis, KEYS, visibility_timeout_seconds=0.3)
    untouched = cast("Any", None)
    unreadable = DeadLetters(redis, KEYS.letters)
    store = CollectionStore(redis, untouched, KEYS)
    return MessageHandler(store, untouched, untouched, untouched, leases, unreadable, drain_seconds=0.0)


async def test_a_message_nobody_can_read_is_done_with_once_it_is_kept(redis: Redis):
    assert await make_handler(redis).handle(UNREADABLE, "tag")
    [letter] = await DeadLetters(redis, KEYS.letters).entries(10)
    assert (letter.raw, letter.reason) == (UNREADABLE, "MALFORMED")


async def test_a_message_that_cannot_be_kept_is_put_back(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tasks, "_PAUSE_SECONDS", 0.0)
    redis = connect(own_redis_server.url)
    own_redis_server.kill()
    assert not await make_handler(redis).handle(UNREADABLE, "tag")
    own_redis_server.start()
    await redis.aclose()


@pytest.mark.parametrize(
    ("collection", "generation"), [("no-such", ""), ("no-such", "89abcdef"), ("default", "89abcdef")]
)
async def test_a_message_for_a_deleted_collection_is_done_with(
    redis: Redis, collection: str, generation: str
):
    await register(redis)
    before = dropped()
    document = '{"id": "a", "text": "t", "version": 1}'
    message = Envelope(collection, generation, 1.0).wrap([document, '{"id": 5}'])
    assert await make_handler(redis).handle(message, "tag")
    assert dropped() == before + 2
    assert await DeadLetters(redis, KEYS.letters).count() == 0
    assert await DeadLetters(redis, STATE.letters).count() == 0


async def test_an_invalid_document_goes_to_the_dead_letters_of_its_collection(redis: Redis):
    await register(redis)
    message = Envelope(CONFIG.name, CONFIG.generation, 1.0).wrap(['{"id": 5}'])
    assert await make_handler(redis).handle(message, "tag")
    [letter] = await DeadLetters(redis, STATE.letters).entries(10)
    assert letter.raw == message
    assert await DeadLetters(redis, KEYS.letters).count() == 0


async def test_a_message_with_an_impossible_collection_is_kept_as_unreadable(redis: Redis):
    message = Envelope("No such!", "", 1.0).wrap(['{"id": "a", "text": "t", "version": 1}'])
    assert await make_handler(redis).handle(message, "tag")
    [letter] = await DeadLetters(redis, KEYS.letters).entries(10)
    assert "collection" in letter.error


def dropped() -> float:
    return float(metrics.DOCUMENTS_TOTAL.labels("dropped")._value.get())


async def test_only_messages_that_are_still_held_are_renewed(redis: Redis):
    leases = Leases(redis, KEYS, visibility_timeout_seconds=0.15)
    await redis.zadd(KEYS.unacked_index, {"held": 1.0, "released": 1.0})
    renewing = asyncio.create_task(leases.renew_forever())
    with leases.hold("released"):
        pass
    with leases.hold("held"), leases.hold("acknowledged"):
        async with asyncio.timeout(5):
            while (await redis.zscore(KEYS.unacked_index, "held")) == 1.0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    renewing.cancel()
    assert await redis.zscore(KEYS.unacked_index, "released") == 1.0
    assert await redis.zscore(KEYS.unacked_index, "acknowledged") is None


async def test_renewal_survives_an_outage_of_redis(own_redis_server: RedisServer):
    redis = connect(own_redis_server.url)
    leases = Leases(redis, KEYS, visibility_timeout_seconds=0.15)
    await redis.zadd(KEYS.unacked_index, {"held": 1.0})
    own_redis_server.kill()
    renewing = asyncio.create_task(leases.renew_forever())
    with leases.hold("held"):
        await asyncio.sleep(0.2)
        own_redis_server.start()
        async with asyncio.timeout(5):
            while (await redis.zscore(KEYS.unacked_index, "held")) == 1.0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert not renewing.done()
    renewing.cancel()
    await redis.aclose()
