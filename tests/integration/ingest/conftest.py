"""The ingest path from end to end: real Redis, real Qdrant Edge, real gRPC, workers as processes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import (
    IngestState,
    collection,
    index,
    make_indexer_dependencies,
    make_ingest_state,
)
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.ingest.worker_process import WorkerProcess
from tests.support.collections import register
from tests.support.grpc_proxy import GrpcProxy
from tests.support.redis import (
    RedisServer,
    own_redis_server,
    redis_client,
    redis_server,
    shared_redis_server,
)
from textmatch.collection_config import CollectionConfig
from textmatch.encoder_client import EncoderClient
from textmatch.index.index import Index
from textmatch.queue.redis_client import connect
from workers.indexer import IndexerDependencies

__all__ = [
    "collection",
    "index",
    "own_redis_server",
    "redis_client",
    "redis_server",
    "shared_redis_server",
]


@pytest.fixture
def encoder() -> Iterator[ScriptedEncoder]:
    scripted = ScriptedEncoder(model_id=f"tiny-{uuid.uuid4().hex[:12]}")
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture
async def deps(index: Index, redis: Redis, encoder: ScriptedEncoder) -> AsyncIterator[IndexerDependencies]:
    client = EncoderClient(encoder.target)
    yield make_indexer_dependencies(index, redis, client)
    await client.close()


@pytest.fixture
def state(redis: Redis, index: Index) -> IngestState:
    return make_ingest_state(redis, index)


@pytest.fixture
async def own_redis(own_redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of a Redis of the test's own, which knows the collection."""
    client = connect(own_redis_server.url)
    await register(client)
    yield client
    await client.aclose()


@pytest.fixture
def own_state(own_redis: Redis, index: Index) -> IngestState:
    return make_ingest_state(own_redis, index)


@pytest.fixture
async def proxy(qdrant_url: str, collection: CollectionConfig) -> AsyncIterator[GrpcProxy]:
    """Before the shared Qdrant: refuses, holds or resets calls."""
    proxy = GrpcProxy(int(qdrant_url.rpartition(":")[2]))
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
def handler(state: IngestState) -> DocumentCalls:
    return DocumentCalls(state)


@pytest.fixture
def start_worker(
    redis_server: RedisServer,
    qdrant_url: str,
    collection: CollectionConfig,
    encoder: ScriptedEncoder,
    tmp_path: Path,
) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers and kills them after the test; keyword arguments are environment variables."""
    started: list[WorkerProcess] = []

    def start(**environment: str) -> WorkerProcess:
        addresses = {
            "TEXTMATCH_REDIS_URL": redis_server.url,
            "TEXTMATCH_QDRANT_URL": qdrant_url,
            "TEXTMATCH_ENCODER_TARGET": encoder.target,
        }
        worker = WorkerProcess({**addresses, **environment}, tmp_path / f"worker-{len(started)}.log")
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
