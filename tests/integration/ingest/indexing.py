"""A real Qdrant Edge with nothing but the collection `default`, and what a worker and a matcher work with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from services.matcher.ingest import Admission, IngestDependencies, QueueLimits
from tests.support.collections import (
    KEYS,
    close_index,
    empty_qdrant,
    make_collection,
    make_index,
    register,
)
from textmatch.collection_config import CollectionConfig
from textmatch.collection_store import Collection
from textmatch.encoder_client import EncoderClient
from textmatch.index.index import Index
from textmatch.indexing import Copier
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.depth import QueueDepth
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer
from textmatch.queue.tombstones import Tombstones
from workers.indexer import DualWriter, IndexerDependencies

TOMBSTONE_SECONDS = 600
UNLIMITED = QueueLimits(10**9, 10**12, tombstone_bytes=10**12, dead_letter_bytes=10**12)


@pytest.fixture
async def collection(qdrant_url: str, redis: Redis) -> CollectionConfig:
    """The collection `default`, registered and empty."""
    await empty_qdrant(qdrant_url)
    return await register(redis)


@pytest.fixture
async def index(qdrant_url: str, collection: CollectionConfig, redis: Redis) -> AsyncIterator[Index]:
    connected = make_index(qdrant_url, collection, redis)
    yield connected
    await close_index(connected)


def make_indexer_dependencies(
    index: Index, redis: Redis, encoder: EncoderClient, unserved_seconds: float = 60.0
) -> IndexerDependencies:
    """What a worker works with."""
    collection = make_collection(redis, index, index.collections.config)
    copier = Copier(index, encoder, collection.tombstones, 10.0)
    dual_writer = DualWriter(index, copier, unserved_seconds)
    return IndexerDependencies(collection, encoder, dual_writer, 10.0, TOMBSTONE_SECONDS)


@dataclass(frozen=True)
class IngestState:
    """What a matcher works with: what all collections share, and the state of one collection."""

    shared: IngestDependencies
    collection: Collection
    # Messages that cannot be read.
    unreadable: DeadLetters

    @property
    def producer(self) -> Producer:
        return self.shared.producer

    @property
    def pending(self) -> Pending:
        return self.collection.pending

    @property
    def tombstones(self) -> Tombstones:
        return self.collection.tombstones

    @property
    def dead_letters(self) -> DeadLetters:
        return self.collection.dead_letters


def make_ingest_state(redis: Redis, index: Index, limits: QueueLimits = UNLIMITED) -> IngestState:
    """What a matcher works with."""
    admission = Admission(QueueDepth(redis, KEYS), limits)
    shared = IngestDependencies(Producer(redis, KEYS), admission, TOMBSTONE_SECONDS)
    return IngestState(shared, make_collection(redis, index), DeadLetters(redis, KEYS.letters))


class Crash(Exception):
    """The worker dies here."""


class CrashingClient:
    """A connection to Qdrant that breaks before one of the writes."""

    def __init__(self, real: Any, write_number: int) -> None:
        self._real = real
        self._left = write_number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def batch_update_points(self, *arguments: Any, **options: Any) -> Any:
        if self._left == 0:
            raise Crash
        self._left -= 1
        return await self._real.batch_update_points(*arguments, **options)
