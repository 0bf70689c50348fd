"""The size of the queue, and the gauges that show it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from prometheus_client import Gauge
from redis.asyncio import Redis

from textmatch.collection_config import CollectionConfig
from textmatch.errors import DependencyUnavailable
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.keys import Keys
from textmatch.queue.messages import accepted_us
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
BACKLOG_DOCUMENTS = Gauge(
    "textmatch_ingest_backlog_documents",
    "Pending documents, or messages of all producers if those are more; workers are scaled by it.",
)
BACKLOG_SECONDS = Gauge(
    "textmatch_ingest_backlog_seconds",
    "Age of the oldest pending document or waiting message of any producer; workers are scaled by it.",
)
TOMBSTONE_BYTES = Gauge("textmatch_tombstone_bytes", "Memory of remembered deletes.")
DEAD_LETTER_BYTES = Gauge("textmatch_dead_letter_bytes", "Memory of dead letters.")
DEAD_LETTERS = Gauge(
    "textmatch_dead_letters",
    "Documents in the dead letters; with an empty collection: unreadable messages.",
    ["collection"],
)
EVICTS_KEYS = Gauge(
    "textmatch_redis_evicts_keys",
    "1 while Redis's maxmemory-policy lets it evict keys, accepted documents included.",
)

# KEYS: collections, the lists with messages, last the hash with held messages. ARGV: the installation.
# Returns the pending documents of all collections, the messages that wait, and all messages.
_DEPTH = """
local pending, entries = 0, redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local generation = cjson.decode(entries[i + 1]).generation
  pending = pending + redis.call('ZCARD', ARGV[1] .. ':' .. entries[i] .. ':' .. generation .. ':pending')
end
local waiting = 0
for i = 2, #KEYS - 1 do
  waiting = waiting + redis.call('LLEN', KEYS[i])
end
return {pending, waiting, waiting + redis.call('HLEN', KEYS[#KEYS])}
"""

# KEYS: collections, dead letters of the installation. ARGV: the installation.
# Returns the memory of tombstones and of dead letters.
_KEPT = """
local function size(key)
  return redis.call('MEMORY', 'USAGE', key) or 0
end
local tombstones, letters, entries = 0, size(KEYS[2]), redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local prefix = ARGV[1] .. ':' .. entries[i] .. ':' .. cjson.decode(entries[i + 1]).generation
  letters = letters + size(prefix .. ':dead-letters') + size(prefix .. ':dead-letter-times')
  tombstones = tombstones + size(prefix .. ':filter-tombstones') + size(prefix .. ':filter-tombstone-ends')
  for _, day in ipairs(redis.call('ZRANGE', prefix .. ':tombstones', 0, -1)) do
    tombstones = tombstones + size(prefix .. ':tombstones:' .. day)
  end
end
return {tombstones, letters}
"""

# KEYS: lists with messages. Returns the time in microseconds, and the oldest message of each list. The client
# decodes UTF-8, which not all producers write. Messages that can be read are ASCII.
_OLDEST = """
local time, oldest = redis.call('TIME'), {}
for _, list in ipairs(KEYS) do
  local message = redis.call('LINDEX', list, -1)
  if message then
    oldest[#oldest + 1] = string.gsub(message, '[\\128-\\255]', '?')
  end
end
return {time[1] * 1000000 + time[2], oldest}
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DepthSample:
    """The size of the queue.

    Attributes:
        documents: pending documents, or waiting messages if those are more.
        size_bytes: the memory of the messages that wait.
        backlog: the same as `documents`, with the messages that workers hold.
    """

    documents: int
    size_bytes: int
    backlog: int


@dataclass(frozen=True)
class KeptSample:
    """The memory of what is kept after documents have left the queue."""

    tombstone_bytes: int
    dead_letter_bytes: int


class QueueDepth:
    """The size of the queue of all collections, measured in Redis each time.

    A counter would be wrong after a crash. Every method raises DependencyUnavailable when Redis does not
    answer.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._lists = [keys.queue, *keys.priority_queues, keys.taken]
        self._depth = redis.register_script(_DEPTH)
        self._kept = redis.register_script(_KEPT)
        self._oldest = redis.register_script(_OLDEST)

    async def measure(self) -> DepthSample:
        """Measure the size. A message of another producer counts as at least one document."""
        counted = [self._keys.collections, *self._lists, self._keys.unacked]
        with translated_errors():
            pending, waiting, messages = await self._depth(keys=counted, args=[self._keys.installation])
            async with self._redis.pipeline(transaction=False) as pipe:
                for one in self._lists:
                    pipe.memory_usage(one, samples=_SAMPLED_NODES)
                sizes = await pipe.execute()
        return DepthSample(max(pending, waiting), sum(one or 0 for one in sizes), max(pending, messages))

    async def measure_kept(self) -> KeptSample:
        """Measure tombstones and dead letters, by a few samples of each."""
        keys = [self._keys.collections, self._keys.letters.dead_letters]
        with translated_errors():
            return KeptSample(*await self._kept(keys=keys, args=[self._keys.installation]))

    async def oldest_seconds(self) -> float:
        """The age of the oldest message that waits, by what it says of its acceptance; 0 if there is none."""
        with translated_errors():
            now_us, oldest = await self._oldest(keys=self._lists)
        accepted = filter(None, (accepted_us(str(one).encode()) for one in oldest))
        return max([0.0, *((float(now_us) - one) / 1e6 for one in accepted)])

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
        depth, kept = await self._depth.measure(), await self._depth.measure_kept()
        QUEUE_BYTES.set(depth.size_bytes)
        BACKLOG_DOCUMENTS.set(depth.backlog)
        TOMBSTONE_BYTES.set(kept.tombstone_bytes)
        DEAD_LETTER_BYTES.set(kept.dead_letter_bytes)
        ages = [await self._depth.oldest_seconds()]
        DEAD_LETTERS.labels("").set(await self._unreadable.count())
        collections = await self._registry.all()
        ages += [await self._sample(collection) for collection in collections]
        BACKLOG_SECONDS.set(max(ages))
        names = {collection.name for collection in collections}
        for deleted in self._names - names:
            for gauge in (QUEUE_DOCUMENTS, OLDEST_SECONDS, DEAD_LETTERS):
                gauge.remove(deleted)
        self._names = names

    async def _sample(self, collection: CollectionConfig) -> float:
        """Sample a collection; returns the age of its oldest pending document."""
        state = self._registry.keys_of(collection)
        pending = Pending(self._redis, state)
        if dropped := await pending.drop_orphans(_ORPHAN_SECONDS, self._keys):
            _log.warning(
                "dropped pending marks of documents without a message",
                extra={"collection": collection.name, "count": dropped},
            )
        summary = await pending.summary()
        QUEUE_DOCUMENTS.labels(collection.name).set(summary.count)
        OLDEST_SECONDS.labels(collection.name).set(summary.oldest_seconds)
        dead_letters = DeadLetters(self._redis, state.letters)
        DEAD_LETTERS.labels(collection.name).set(await dead_letters.count())
        return summary.oldest_seconds

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
