"""What becomes of a message when things around the pipeline fail."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from tests.support.redis import RedisServer
from textmatch.queue import keys
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.pending import Pending
from textmatch.queue.redis_client import connect
from workers import tasks
from workers.tasks import Leases, MessageHandler

UNREADABLE = "not a message"


def make_handler(redis: Redis) -> MessageHandler:
    """One that never gets as far as the index."""
    leases = Leases(redis, visibility_timeout_seconds=0.3)
    untouched = cast("Any", None)
    return MessageHandler(untouched, untouched, leases, DeadLetters(redis), Pending(redis), drain_seconds=0.0)


async def test_a_message_nobody_can_read_is_done_with_once_it_is_kept(redis: Redis):
    assert await make_handler(redis).handle(UNREADABLE, "tag")
    [letter] = await DeadLetters(redis).entries(10)
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


async def test_only_messages_that_are_still_held_are_renewed(redis: Redis):
    leases = Leases(redis, visibility_timeout_seconds=0.15)
    await redis.zadd(keys.UNACKED_INDEX, {"held": 1.0, "released": 1.0})
    renewing = asyncio.create_task(leases.renew_forever())
    with leases.hold("released"):
        pass
    with leases.hold("held"), leases.hold("acknowledged"):
        async with asyncio.timeout(5):
            while (await redis.zscore(keys.UNACKED_INDEX, "held")) == 1.0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    renewing.cancel()
    assert await redis.zscore(keys.UNACKED_INDEX, "released") == 1.0
    assert await redis.zscore(keys.UNACKED_INDEX, "acknowledged") is None


async def test_renewal_survives_an_outage_of_redis(own_redis_server: RedisServer):
    redis = connect(own_redis_server.url)
    leases = Leases(redis, visibility_timeout_seconds=0.15)
    await redis.zadd(keys.UNACKED_INDEX, {"held": 1.0})
    own_redis_server.kill()
    renewing = asyncio.create_task(leases.renew_forever())
    with leases.hold("held"):
        await asyncio.sleep(0.2)
        own_redis_server.start()
        async with asyncio.timeout(5):
            while (await redis.zscore(keys.UNACKED_INDEX, "held")) == 1.0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert not renewing.done()
    renewing.cancel()
    await redis.aclose()
