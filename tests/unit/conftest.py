"""A real, empty Redis for each test that asks for it."""

from __future__ import annotations

from tests.support.redis import own_redis_server, redis_client, redis_server, shared_redis_server

__all__ = ["own_redis_server", "redis_client", "redis_server", "shared_redis_server"]
