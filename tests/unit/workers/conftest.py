"""A real, empty Redis for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.support.redis import RedisServer, own_redis_server, redis_server, shared_redis_server
from textmatch.queue.redis_client import connect

__all__ = ["own_redis_server", "redis", "redis_server", "shared_redis_server"]


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """The client that the code under test gets."""
    client = connect(redis_server.url)
    yield client
    await client.aclose()
