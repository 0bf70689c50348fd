"""Documents that are accepted and not yet settled, by their highest accepted version.

A write that expects a version is decided by what is stored and what is pending. Between reading the index and
accepting the write, another write may be accepted, indexed and no longer pending. Therefore the document is
*watched* before the index is read, like a key by WATCH of Redis. Each acceptance ends the watches of its
documents, and a write whose watch has ended is refused (producer.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from textmatch.queue.clock import CLOCK_LUA
from textmatch.queue.keys import CollectionKeys, Keys
from textmatch.queue.redis_client import flattened, translated_errors

# KEYS: pending, pending-versions. ARGV: ids and versions.
_CLEAR = """
for i = 1, #ARGV, 2 do
  local id, version = ARGV[i], ARGV[i + 1]
  local known = redis.call('HGET', KEYS[2], id)
  if known and tonumber(known) <= tonumber(version) then
    redis.call('HDEL', KEYS[2], id)
    redis.call('ZREM', KEYS[1], id)
  end
end
"""

# KEYS: pending. Returns how many there are, and the age of the oldest in microseconds: those who wait
# compare it with the time since they began, which may be less than a millisecond.
_SUMMARY = """
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
return {redis.call('ZCARD', KEYS[1]), oldest and math.max(0, (now - oldest) * 1000000) or 0}
"""

# KEYS: pending, pending-versions, queue, taken, unacked. ARGV: marks of at least this age in seconds are
# dropped.
_DROP_ORPHANS = """
if redis.call('LLEN', KEYS[3]) + redis.call('LLEN', KEYS[4]) + redis.call('HLEN', KEYS[5]) > 0 then
  return 0
end
local accepted = redis.call('TIME')[1] - ARGV[1]
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', accepted, 'LIMIT', 0, 1000)
for _, id in ipairs(ids) do
  redis.call('HDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[1], id)
end
return #ids
"""


# A watch that exists stays: no write was accepted since. KEYS: clock, watches. ARGV: how long watches last,
# how many there may be, ids. Returns the time now, and the marks of the ids.
_WATCH = (
    CLOCK_LUA
    + """
if redis.call('HLEN', KEYS[2]) > tonumber(ARGV[2]) then
  redis.call('DEL', KEYS[2])
end
local now, marks = tick(KEYS[1], 1), {}
for i = 3, #ARGV do
  redis.call('HSETNX', KEYS[2], ARGV[i], text(now))
  marks[i - 2] = tonumber(redis.call('HGET', KEYS[2], ARGV[i]))
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
return {now, marks}
"""
)

_WATCH_SECONDS = 60
_MAX_WATCHES = 10_000


@dataclass(frozen=True)
class Watch:
    """`mark` is gone once a write is accepted. Deletes accepted from `since_us` on are not seen yet."""

    mark: int
    since_us: int


@dataclass(frozen=True)
class PendingSummary:
    """The number of pending documents, and the age of the oldest; 0 if there is none."""

    count: int
    oldest_seconds: float


class Pending:
    """The marks that producer.py sets for the documents of one collection.

    Scripts clear them, so a newer mark set at the same time stays.

    Every method raises DependencyUnavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis, keys: CollectionKeys) -> None:
        self._redis = redis
        self._pending = keys.pending
        self._versions = keys.pending_versions
        self._watches = [keys.clock, keys.watches]
        self._watch = redis.register_script(_WATCH)
        self._clear = redis.register_script(_CLEAR)
        self._summary = redis.register_script(_SUMMARY)
        self._drop_orphans = redis.register_script(_DROP_ORPHANS)

    async def clear(self, versions: Mapping[str, int]) -> None:
        """Clear the marks of documents up to these versions; a pending newer version stays marked."""
        with translated_errors():
            await self._clear(keys=[self._pending, self._versions], args=flattened(versions.items()))

    async def versions(self, ids: Iterable[str]) -> dict[str, int]:
        """The highest accepted versions of those documents that are pending."""
        asked = list(ids)
        if not asked:
            return {}
        with translated_errors():
            found = await self._redis.hmget(self._versions, asked)
        pairs = zip(asked, found, strict=True)
        return {document_id: int(version) for document_id, version in pairs if version is not None}

    async def watch(self, ids: Iterable[str]) -> dict[str, Watch]:
        """Watch documents for a minute: producer.py accepts a write only while its watch lasts."""
        asked = list(ids)
        with translated_errors():
            now, marks = await self._watch(keys=self._watches, args=[_WATCH_SECONDS, _MAX_WATCHES, *asked])
        return {one: Watch(mark, now) for one, mark in zip(asked, marks, strict=True)}

    async def summary(self) -> PendingSummary:
        """The number and age of all pending documents."""
        with translated_errors():
            count, oldest_us = await self._summary(keys=[self._pending])
        return PendingSummary(count, oldest_us / 1e6)

    async def drop_orphans(self, age_seconds: float, installation: Keys) -> int:
        """Drop old marks if the queue has no message that could settle them; returns how many.

        A queue that was emptied manually leaves such marks.
        """
        places = [installation.queue, installation.taken, installation.unacked]
        arguments = [self._pending, self._versions, *places]
        with translated_errors():
            return int(await self._drop_orphans(keys=arguments, args=[age_seconds]))
