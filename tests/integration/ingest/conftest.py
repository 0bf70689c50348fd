"""The ingest path from end to end: real Redis, real Qdrant Edge, real gRPC, workers as processes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.matcher.documents import DocumentsHandler
from services.matcher.ingest import IngestDependencies
from tests.integration.ingest.ingest_state import make_ingest_state
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.ingest.worker_process import WorkerProcess
from tests.integration.qdrant.edge_process import EdgeProcess
from tests.support.redis import RedisServer, own_redis_server, redis_server, shared_redis_server
from textmatch.encoder_client import EncoderClient
from textmatch.index.client import connect as connect_qdrant
from textmatch.index.index import Index
from textmatch.indexing import Copier
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.pending import Pending
from textmatch.queue.redis_client import connect
from textmatch.queue.tombstones import Tombstones
from workers.indexer import DualWriter, IndexerDependencies

__all__ = ["own_redis_server", "redis_server", "shared_redis_server"]


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
    scripted = ScriptedEncoder(model_id=f"tiny-{uuid.uuid4().hex[:12]}")
    scripted.start()
    yield scripted
    scripted.stop()


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
async def deps(index: Index, redis: Redis, encoder: ScriptedEncoder) -> AsyncIterator[IndexerDependencies]:
    """What a worker works with."""
    client = EncoderClient(encoder.target)
    yield IndexerDependencies(
        encoder=client,
        index=index,
        dual_writer=DualWriter(index, Copier(index, client, Tombstones(redis), 10.0), unserved_seconds=60.0),
        pending=Pending(redis),
        tombstones=Tombstones(redis),
        dead_letters=DeadLetters(redis),
        encode_timeout_seconds=10.0,
    )
    await client.close()


@pytest.fixture
def state(redis: Redis) -> IngestDependencies:
    """What a matcher works with."""
    return make_ingest_state(redis)


@pytest.fixture
def handler(index: Index, state: IngestDependencies) -> DocumentsHandler:
    return DocumentsHandler(index, state)


@pytest.fixture
def start_worker(
    redis_server: RedisServer, qdrant_url: str, alias: str, encoder: ScriptedEncoder, tmp_path: Path
) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers and kills them after the test; keyword arguments are environment variables."""
    started: list[WorkerProcess] = []

    def start(**environment: str) -> WorkerProcess:
        addresses = {
            "TEXTMATCH_REDIS_URL": redis_server.url,
            "TEXTMATCH_QDRANT_URL": qdrant_url,
            "TEXTMATCH_ENCODER_TARGET": encoder.target,
            "TEXTMATCH_COLLECTION_ALIAS": alias,
        }
        worker = WorkerProcess({**addresses, **environment}, tmp_path / f"worker-{len(started)}.log")
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
