"""Changing the model over real Redis, real Qdrant Edge, real gRPC and a scripted encoder with two models."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.indexing import collection, index, make_indexer_dependencies
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.reindex.command import ReindexCommand
from tests.support.collections import close_index, make_index
from tests.support.redis import (
    RedisServer,
    own_redis_server,
    redis_client,
    redis_server,
    shared_redis_server,
)
from textmatch.collection_config import CollectionConfig
from textmatch.encoder_client import EncoderClient
from workers.indexer import IndexerDependencies

__all__ = ["collection", "index", "own_redis_server", "redis_client", "redis_server", "shared_redis_server"]

OpenDeps = Callable[..., AbstractAsyncContextManager[IndexerDependencies]]


@pytest.fixture
def encoder() -> Iterator[ScriptedEncoder]:
    """Serves a model, its default, and a new one."""
    scripted = ScriptedEncoder(model_id=f"old-{uuid.uuid4().hex[:12]}")
    scripted.other_model_ids = (f"new-{uuid.uuid4().hex[:12]}",)
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture
def old(encoder: ScriptedEncoder) -> str:
    return encoder.model_id


@pytest.fixture
def new(encoder: ScriptedEncoder) -> str:
    return encoder.other_model_ids[0]


@pytest.fixture
def open_deps(
    qdrant_url: str, collection: CollectionConfig, redis: Redis, encoder: ScriptedEncoder
) -> OpenDeps:
    """What a worker works with, with its own connections and caches."""

    @asynccontextmanager
    async def opened(unserved_seconds: float = 60.0, url: str = "") -> AsyncIterator[IndexerDependencies]:
        client = EncoderClient(encoder.target)
        index = make_index(url or qdrant_url, collection, redis)
        yield make_indexer_dependencies(index, redis, client, unserved_seconds)
        await client.close()
        await close_index(index)

    return opened


@pytest.fixture
async def deps(open_deps: OpenDeps) -> AsyncIterator[IndexerDependencies]:
    async with open_deps() as opened:
        yield opened


@pytest.fixture
def command(
    qdrant_url: str, collection: CollectionConfig, redis_server: RedisServer, encoder: ScriptedEncoder
) -> Iterator[ReindexCommand]:
    started = ReindexCommand(
        {
            "TEXTMATCH_QDRANT_URL": qdrant_url,
            "TEXTMATCH_REDIS_URL": redis_server.url,
            "TEXTMATCH_ENCODER_TARGET": encoder.target,
        }
    )
    yield started
    started.kill_all()
