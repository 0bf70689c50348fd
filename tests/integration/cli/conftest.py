"""Fixtures: real servers whose answers a test sets, and a real Redis."""

from tests.support.redis import redis_server, shared_redis_server
from tests.support.scripted_servicer import client, encoder, encoder_server, matcher, matcher_server

__all__ = [
    "client",
    "encoder",
    "encoder_server",
    "matcher",
    "matcher_server",
    "redis_server",
    "shared_redis_server",
]
