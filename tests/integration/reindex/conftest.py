"""Changing the model over real Redis, real Qdrant Edge, real gRPC and a scripted encoder with two models."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.indexing import alias, index, make_indexer_dependencies, qdrant_url
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.reindex.command import ReindexCommand
from tests.support.redis import RedisServer, redis_client, redis_server, shared_redis_server
from textmatch.encoder_client import EncoderClient
from textmatch.index.client import connect
from textmatch.index.index import Index
from workers.indexer import IndexerDependencies

__all__ = ["alias", "index", "qdrant_url", "redis_client", "redis_server", "shared_redis_server"]

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
def open_deps(qdrant_url: str, alias: str, redis: Redis, encoder: ScriptedEncoder) -> OpenDeps:
    """What a worker works with, with its own connections and caches."""

    @asynccontextmanager
    async def opened(unserved_seconds: float = 60.0) -> AsyncIterator[IndexerDependencies]:
        client = EncoderClient(encoder.target)
        index = Index(connect(qdrant_url), alias)
        yield make_indexer_dependencies(index, redis, client, unserved_seconds)
        await client.close()
        await index.close()

    return opened


@pytest.fixture
async def deps(open_deps: OpenDeps) -> AsyncIterator[IndexerDependencies]:
    async with open_deps() as opened:
        yield opened


@pytest.fixture
def command(
    qdrant_url: str, alias: str, redis_server: RedisServer, encoder: ScriptedEncoder
) -> Iterator[ReindexCommand]:
    started = ReindexCommand(
        {
            "TEXTMATCH_QDRANT_URL": qdrant_url,
            "TEXTMATCH_REDIS_URL": redis_server.url,
            "TEXTMATCH_ENCODER_TARGET": encoder.target,
            "TEXTMATCH_COLLECTION_ALIAS": alias,
        }
    )
    yield started
    started.kill_all()
