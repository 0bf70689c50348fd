"""What a matcher needs of Redis."""

from __future__ import annotations

from redis.asyncio import Redis

from services.matcher.ingest import Admission, IngestDependencies, QueueLimits
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.depth import QueueDepth
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer
from textmatch.queue.tombstones import Tombstones

TOMBSTONE_SECONDS = 600


UNLIMITED = QueueLimits(documents=10**9, size_bytes=10**12)


def make_ingest_state(redis: Redis, limits: QueueLimits = UNLIMITED) -> IngestDependencies:
    """All of it on one connection."""
    return IngestDependencies(
        producer=Producer(redis),
        pending=Pending(redis),
        tombstones=Tombstones(redis),
        dead_letters=DeadLetters(redis),
        admission=Admission(QueueDepth(redis), limits),
        tombstone_seconds=TOMBSTONE_SECONDS,
    )
