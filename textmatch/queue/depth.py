"""How much waits, of what size.

How much waits, how much has failed, and whether Redis may lose it: read every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from prometheus_client import Gauge
from redis.asyncio import Redis

from textmatch.errors import DependencyUnavailable
from textmatch.queue import keys
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.pending import Pending
from textmatch.queue.redis_client import translated_errors

# Redis measures so many of the queue's nodes, newest first, and takes the others for as large on average. A
# node is 8 KiB of small messages or one larger message.
_SAMPLED_NODES = 1_000


@dataclass(frozen=True)
class DepthSample:
    """Documents that wait, and the memory of the messages that wait."""

    documents: int
    size_bytes: int


class QueueDepth:
    """Measured anew each time and never counted up and down, so that no crash can make it wrong."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def measure(self) -> DepthSample:
        """The size now, messages of other producers included, with at least one document each.

        Raises:
            DependencyUnavailable: Redis does not answer.
        """
        with translated_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zcard(keys.PENDING)
                pipe.llen(keys.QUEUE)
                pipe.memory_usage(keys.QUEUE, samples=_SAMPLED_NODES)
                marked, messages, size_bytes = await pipe.execute()
        return DepthSample(documents=max(marked, messages), size_bytes=size_bytes or 0)


_log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 5.0
_ORPHAN_SECONDS = 120.0
_SAFE_POLICY = "noeviction"

QUEUE_DOCUMENTS = Gauge("textmatch_ingest_queue_documents", "Documents accepted and not searchable yet.")
QUEUE_BYTES = Gauge("textmatch_ingest_queue_bytes", "Memory of the messages in the queue.")
OLDEST_SECONDS = Gauge("textmatch_ingest_oldest_seconds", "Age of the oldest of them; 0 if there is none.")
DEAD_LETTERS = Gauge("textmatch_dead_letters", "Documents and messages in the dead letters.")
EVICTS_KEYS = Gauge(
    "textmatch_redis_evicts_keys", "1 while Redis's maxmemory-policy lets it drop keys, documents among them."
)


class QueueGauges:
    """Keeps the gauges up to date, and drops marks that nothing will settle."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pending = Pending(redis)
        self._backlog = QueueDepth(redis)
        self._dead_letters = DeadLetters(redis)
        self._policy = _SAFE_POLICY

    async def sample_forever(self) -> None:
        """Sample, again and again."""
        while True:
            try:
                await self.sample()
            except DependencyUnavailable as error:
                _log.warning("queue not sampled", extra={"error": str(error)})
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def sample(self) -> None:
        """Sample once.

        Raises:
            DependencyUnavailable: Redis does not answer.
        """
        now = time.time()
        await self._check_policy()
        if dropped := await self._pending.drop_orphans(now - _ORPHAN_SECONDS):
            _log.warning("dropped marks of documents that are in no message", extra={"count": dropped})
        summary = await self._pending.summary()
        QUEUE_DOCUMENTS.set(summary.count)
        QUEUE_BYTES.set((await self._backlog.measure()).size_bytes)
        OLDEST_SECONDS.set(summary.oldest_seconds(now))
        DEAD_LETTERS.set(await self._dead_letters.count())

    async def _check_policy(self) -> None:
        """Look at what INFO says, because CONFIG is off at many who run Redis for others."""
        with translated_errors():
            policy = str((await self._redis.info("memory")).get("maxmemory_policy", _SAFE_POLICY))
        EVICTS_KEYS.set(policy != _SAFE_POLICY)
        if policy not in (self._policy, _SAFE_POLICY):
            _log.error(
                "Redis may drop accepted documents: set its maxmemory-policy to noeviction",
                extra={"maxmemory_policy": policy},
            )
        self._policy = policy
