"""A real Qdrant Edge with a fresh alias for each test, and what a worker and a matcher work with."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from services.matcher.ingest import Admission, IngestDependencies, QueueLimits
from tests.integration.qdrant.edge_process import EdgeProcess
from textmatch.encoder_client import EncoderClient
from textmatch.index.client import connect
from textmatch.index.index import Index
from textmatch.indexing import Copier
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.depth import QueueDepth
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer
from textmatch.queue.tombstones import Tombstones
from workers.indexer import DualWriter, IndexerDependencies

TOMBSTONE_SECONDS = 600
UNLIMITED = QueueLimits(documents=10**9, size_bytes=10**12)


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
async def index(qdrant_url: str, alias: str) -> AsyncIterator[Index]:
    connected = Index(connect(qdrant_url), alias)
    yield connected
    await connected.close()


def make_indexer_dependencies(
    index: Index, redis: Redis, encoder: EncoderClient, unserved_seconds: float = 60.0
) -> IndexerDependencies:
    """What a worker works with."""
    tombstones = Tombstones(redis)
    return IndexerDependencies(
        encoder=encoder,
        index=index,
        dual_writer=DualWriter(index, Copier(index, encoder, tombstones, 10.0), unserved_seconds),
        pending=Pending(redis),
        tombstones=tombstones,
        dead_letters=DeadLetters(redis),
        encode_timeout_seconds=10.0,
    )


def make_ingest_state(redis: Redis, limits: QueueLimits = UNLIMITED) -> IngestDependencies:
    """What a matcher works with."""
    return IngestDependencies(
        producer=Producer(redis),
        pending=Pending(redis),
        tombstones=Tombstones(redis),
        dead_letters=DeadLetters(redis),
        admission=Admission(QueueDepth(redis), limits),
        tombstone_seconds=TOMBSTONE_SECONDS,
    )
