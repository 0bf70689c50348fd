"""Fixtures: real servers whose answers a test sets, and a real Redis."""

import pytest

from tests.support.redis import redis_server, shared_redis_server
from tests.support.scripted_servicer import client, encoder, encoder_server, matcher, matcher_server
from textmatch.client import TextMatchClient

__all__ = [
    "client",
    "encoder",
    "encoder_server",
    "matcher",
    "matcher_server",
    "redis_server",
    "shared_redis_server",
]


@pytest.fixture
def corpus(client: TextMatchClient) -> None:
    client.ingest_all(
        [
            {"id": "cat", "text": "the cat sits", "attributes": {"year": 2024, "tags": ["a"]}},
            {"id": "猫", "text": "猫 坐 在 垫子 上"},
        ]
    )
