"""The size of the queue, and the gauges that show it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from prometheus_client import Gauge
from redis.asyncio import Redis

from textmatch.collection_config import CollectionConfig
from textmatch.errors import DependencyUnavailable
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.keys import Keys
from textmatch.queue.pending import Pending
from textmatch.queue.redis_client import translated_errors
from textmatch.queue.registry import Registry

# Redis measures this many nodes of the list, newest first, and assumes that the others are as large on
# average. A node is 8 KiB of small messages, or one larger message.
_SAMPLED_NODES = 1_000
_INTERVAL_SECONDS = 5.0
_ORPHAN_SECONDS = 120.0
_SAFE_POLICY = "noeviction"

QUEUE_DOCUMENTS = Gauge(
    "textmatch_ingest_queue_documents", "Documents accepted and not searchable yet.", ["collection"]
)
QUEUE_BYTES = Gauge("textmatch_ingest_queue_bytes", "Memory of the messages in the queue.")
OLDEST_SECONDS = Gauge(
    "textmatch_ingest_oldest_seconds", "Age of the oldest queued document; 0 if none.", ["collection"]
)
DEAD_LETTERS = Gauge(
    "textmatch_dead_letters",
    "Documents in the dead letters; with an empty collection: unreadable messages.",
    ["collection"],
)
EVICTS_KEYS = Gauge(
    "textmatch_redis_evicts_keys",
    "1 while Redis's maxmemory-policy lets it evict keys, accepted documents included.",
)

# KEYS: collections. ARGV: the installation. Returns the pending documents of all collections.
_PENDING = """
local pending, entries = 0, redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local generation = cjson.decode(entries[i + 1]).generation
  pending = pending + redis.call('ZCARD', ARGV[1] .. ':' .. entries[i] .. ':' .. generation .. ':pending')
end
return pending
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DepthSample:
    """Pending documents, and the memory of the messages in the queue."""

    documents: int
    size_bytes: int


class QueueDepth:
    """The size of the queue of all collections, measured in Redis each time.

    A counter would be wrong after a crash.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._pending = redis.register_script(_PENDING)

    async def measure(self) -> DepthSample:
        """Measure the size. A message of another producer counts as at least one document.

        Raises:
            DependencyUnavailable: Redis does not answer.
        """
        with translated_errors():
            pending = await self._pending(keys=[self._keys.collections], args=[self._keys.installation])
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.llen(self._keys.queue)
                pipe.memory_usage(self._keys.queue, samples=_SAMPLED_NODES)
                messages, size_bytes = await pipe.execute()
        return DepthSample(documents=max(pending, messages), size_bytes=size_bytes or 0)

    async def waiting(self) -> int:
        """How many messages wait.

        Raises:
            DependencyUnavailable: Redis does not answer.
        """
        with translated_errors():
            return int(await self._redis.llen(self._keys.queue))


class QueueGauges:
    """Updates the gauges, and drops pending marks that no message will settle."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._registry = Registry(redis, keys)
        self._depth = QueueDepth(redis, keys)
        self._unreadable = DeadLetters(redis, keys.letters)
        self._policy = _SAFE_POLICY
        self._names: set[str] = set()

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
        await self._check_policy()
        QUEUE_BYTES.set((await self._depth.measure()).size_bytes)
        DEAD_LETTERS.labels("").set(await self._unreadable.count())
        collections = await self._registry.all()
        for collection in collections:
            await self._sample(collection)
        names = {collection.name for collection in collections}
        for deleted in self._names - names:
            for gauge in (QUEUE_DOCUMENTS, OLDEST_SECONDS, DEAD_LETTERS):
                gauge.remove(deleted)
        self._names = names

    async def _sample(self, collection: CollectionConfig) -> None:
        state = self._registry.keys_of(collection)
        pending, now = Pending(self._redis, state), time.time()
        if dropped := await pending.drop_orphans(now - _ORPHAN_SECONDS, self._keys):
            _log.warning(
                "dropped pending marks of documents without a message",
                extra={"collection": collection.name, "count": dropped},
            )
        summary = await pending.summary()
        QUEUE_DOCUMENTS.labels(collection.name).set(summary.count)
        OLDEST_SECONDS.labels(collection.name).set(summary.oldest_seconds(now))
        dead_letters = DeadLetters(self._redis, state.letters)
        DEAD_LETTERS.labels(collection.name).set(await dead_letters.count())

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
