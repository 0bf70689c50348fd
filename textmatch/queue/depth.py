"""The size of the queue, and the gauges that show it."""

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

# Redis measures this many nodes of the list, newest first, and assumes that the others are as large on
# average. A node is 8 KiB of small messages, or one larger message.
_SAMPLED_NODES = 1_000
_INTERVAL_SECONDS = 5.0
_ORPHAN_SECONDS = 120.0
_SAFE_POLICY = "noeviction"

QUEUE_DOCUMENTS = Gauge("textmatch_ingest_queue_documents", "Documents accepted and not searchable yet.")
QUEUE_BYTES = Gauge("textmatch_ingest_queue_bytes", "Memory of the messages in the queue.")
OLDEST_SECONDS = Gauge("textmatch_ingest_oldest_seconds", "Age of the oldest queued document; 0 if none.")
DEAD_LETTERS = Gauge("textmatch_dead_letters", "Documents and messages in the dead letters.")
EVICTS_KEYS = Gauge(
    "textmatch_redis_evicts_keys",
    "1 while Redis's maxmemory-policy lets it evict keys, accepted documents included.",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DepthSample:
    """Pending documents, and the memory of the messages in the queue."""

    documents: int
    size_bytes: int


class QueueDepth:
    """The size of the queue, measured in Redis each time: a counter would be wrong after a crash."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def measure(self) -> DepthSample:
        """Measure the size. A message of another producer counts as at least one document.

        Raises:
            DependencyUnavailable: Redis does not answer.
        """
        with translated_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zcard(keys.PENDING)
                pipe.llen(keys.QUEUE)
                pipe.memory_usage(keys.QUEUE, samples=_SAMPLED_NODES)
                pending, messages, size_bytes = await pipe.execute()
        return DepthSample(documents=max(pending, messages), size_bytes=size_bytes or 0)


class QueueGauges:
    """Updates the gauges, and drops pending marks that no message will settle."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pending = Pending(redis)
        self._depth = QueueDepth(redis)
        self._dead_letters = DeadLetters(redis)
        self._policy = _SAFE_POLICY

    async def sample_forever(self) -> None:
        """Sample every few seconds until cancelled."""
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
            _log.warning("dropped pending marks of documents without a message", extra={"count": dropped})
        summary = await self._pending.summary()
        QUEUE_DOCUMENTS.set(summary.count)
        QUEUE_BYTES.set((await self._depth.measure()).size_bytes)
        OLDEST_SECONDS.set(summary.oldest_seconds(now))
        DEAD_LETTERS.set(await self._dead_letters.count())

    async def _check_policy(self) -> None:
        """Read the policy from INFO, because many managed Redis services disable CONFIG."""
        with translated_errors():
            policy = str((await self._redis.info("memory")).get("maxmemory_policy", _SAFE_POLICY))
        EVICTS_KEYS.set(policy != _SAFE_POLICY)
        if policy not in (self._policy, _SAFE_POLICY):
            _log.error(
                "Redis may evict accepted documents: set its maxmemory-policy to noeviction",
                extra={"maxmemory_policy": policy},
            )
        self._policy = policy
