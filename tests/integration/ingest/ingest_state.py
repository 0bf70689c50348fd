"""What a matcher needs of Redis."""

from __future__ import annotations

from redis.asyncio import Redis

from services.matcher.documents import IngestState
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer
from textmatch.queue.tombstones import Tombstones

TOMBSTONE_SECONDS = 600


def make_ingest_state(redis: Redis) -> IngestState:
    """All of it on one connection."""
    return IngestState(
        producer=Producer(redis),
        pending=Pending(redis),
        tombstones=Tombstones(redis),
        dead_letters=DeadLetters(redis),
        tombstone_seconds=TOMBSTONE_SECONDS,
    )
