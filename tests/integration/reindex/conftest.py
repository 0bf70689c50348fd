"""Changing the model over real Redis, real Qdrant Edge, real gRPC and a scripted encoder with two models."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.qdrant.edge_process import EdgeProcess
from tests.integration.reindex.command import ReindexCommand
from tests.support.redis import RedisServer, redis_server, shared_redis_server
from textmatch.encoder_client import EncoderClient
from textmatch.index.client import connect as connect_qdrant
from textmatch.index.index import Index
from textmatch.indexing import Copier
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.pending import Pending
from textmatch.queue.redis_client import connect
from textmatch.queue.tombstones import Tombstones
from workers.indexer import DualWriter, IndexerDependencies

__all__ = ["redis_server", "shared_redis_server"]

OpenDeps = Callable[..., AbstractAsyncContextManager[IndexerDependencies]]


@pytest.fixture(scope="session")
def qdrant_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = EdgeProcess(tmp_path_factory.mktemp("qdrant"))
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    assert server.stop() == 0


@pytest.fixture
def alias() -> str:
    return f"alias-{uuid.uuid4().hex}"


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
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = connect(redis_server.url)
    yield client
    await client.aclose()


@pytest.fixture
async def index(qdrant_url: str, alias: str) -> AsyncIterator[Index]:
    connected = Index(connect_qdrant(qdrant_url), alias)
    yield connected
    await connected.close()


@pytest.fixture
def open_deps(qdrant_url: str, alias: str, redis: Redis, encoder: ScriptedEncoder) -> OpenDeps:
    """What a worker works with, its connections and caches its own."""

    @asynccontextmanager
    async def opened(unserved_seconds: float = 60.0) -> AsyncIterator[IndexerDependencies]:
        client = EncoderClient(encoder.target)
        index = Index(connect_qdrant(qdrant_url), alias)
        copier = Copier(index, client, Tombstones(redis), encode_timeout_seconds=10.0)
        yield IndexerDependencies(
            encoder=client,
            index=index,
            dual_writer=DualWriter(index, copier, unserved_seconds),
            pending=Pending(redis),
            tombstones=Tombstones(redis),
            dead_letters=DeadLetters(redis),
            encode_timeout_seconds=10.0,
        )
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
