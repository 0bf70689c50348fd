"""Which documents are accepted and not yet settled, by their highest accepted version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from textmatch.queue import keys
from textmatch.queue.connection import translated_errors

# KEYS: pending, pending-versions. ARGV: now, then id and version in turn. Returns the version known before.
_MARK = """
local before = {}
for i = 2, #ARGV, 2 do
  local id, version = ARGV[i], ARGV[i + 1]
  local known = redis.call('HGET', KEYS[2], id) or '0'
  before[#before + 1] = known
  if tonumber(known) < tonumber(version) then
    redis.call('HSET', KEYS[2], id, version)
    redis.call('ZADD', KEYS[1], ARGV[1], id)
  end
end
return before
"""

# ARGV: id, the version marked and the version known before, in turn.
_UNDO = """
for i = 1, #ARGV, 3 do
  local id, version, before = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('HGET', KEYS[2], id) == version and before ~= version then
    if before == '0' then
      redis.call('HDEL', KEYS[2], id)
      redis.call('ZREM', KEYS[1], id)
    else
      redis.call('HSET', KEYS[2], id, before)
    end
  end
end
"""

# ARGV: id and version in turn.
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

# KEYS: pending, pending-versions, queue, taken, unacked. ARGV: marks up to this time are dropped.
_DROP_ORPHANS = """
if redis.call('LLEN', KEYS[3]) + redis.call('LLEN', KEYS[4]) + redis.call('HLEN', KEYS[5]) > 0 then
  return 0
end
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 1000)
for _, id in ipairs(ids) do
  redis.call('HDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[1], id)
end
return #ids
"""

_KEYS = [keys.PENDING, keys.PENDING_VERSIONS]


@dataclass(frozen=True)
class PendingSummary:
    """How many documents wait, and since when the oldest of them does (seconds since 1970; None if none)."""

    count: int
    oldest_accepted_at: float | None

    def oldest_seconds(self, now: float) -> float:
        """Age of the oldest; 0 if there is none."""
        return 0.0 if self.oldest_accepted_at is None else max(0.0, now - self.oldest_accepted_at)


class Pending:
    """Marks are changed by scripts, so that concurrent writers of a document never undo one another.

    Every method raises DependencyUnavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._mark = redis.register_script(_MARK)
        self._undo = redis.register_script(_UNDO)
        self._clear = redis.register_script(_CLEAR)
        self._drop_orphans = redis.register_script(_DROP_ORPHANS)

    async def mark(self, versions: Mapping[str, int], accepted_at: float) -> dict[str, int]:
        """Mark documents as accepted in these versions; returns what was pending before, 0 for nothing."""
        arguments: list[str | int | float] = [accepted_at]
        for document_id, version in versions.items():
            arguments += [document_id, version]
        with translated_errors():
            before = await self._mark(keys=_KEYS, args=arguments)
        return dict(zip(versions, map(int, before), strict=True))

    async def undo(self, versions: Mapping[str, int], before: Mapping[str, int]) -> None:
        """Take back a `mark` whose documents were not published after all."""
        arguments: list[str | int] = []
        for document_id, version in versions.items():
            arguments += [document_id, version, before[document_id]]
        with translated_errors():
            await self._undo(keys=_KEYS, args=arguments)

    async def clear(self, versions: Mapping[str, int]) -> None:
        """Documents are settled up to these versions; one that waits in a newer version stays marked."""
        arguments: list[str | int] = []
        for document_id, version in versions.items():
            arguments += [document_id, version]
        with translated_errors():
            await self._clear(keys=_KEYS, args=arguments)

    async def versions(self, ids: Iterable[str]) -> dict[str, int]:
        """The highest accepted version of those of these documents that wait."""
        asked = list(ids)
        if not asked:
            return {}
        with translated_errors():
            found = await self._redis.hmget(keys.PENDING_VERSIONS, asked)
        pairs = zip(asked, found, strict=True)
        return {document_id: int(version) for document_id, version in pairs if version is not None}

    async def summary(self) -> PendingSummary:
        """The totals."""
        with translated_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zcard(keys.PENDING)
                pipe.zrange(keys.PENDING, 0, 0, withscores=True)
                count, oldest = await pipe.execute()
        return PendingSummary(count, float(oldest[0][1]) if oldest else None)

    async def drop_orphans(self, accepted_before: float) -> int:
        """Drop old marks when no message is left that could settle them; says how many.

        A process that is killed after `mark` and before it publishes leaves such marks. Nobody was told that
        these documents were accepted.
        """
        arguments = [*_KEYS, keys.QUEUE, keys.TAKEN, keys.UNACKED]
        with translated_errors():
            return int(await self._drop_orphans(keys=arguments, args=[accepted_before]))
