"""Which documents are accepted and not yet settled, by their highest accepted version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from textmatch.queue import keys
from textmatch.queue.redis_client import translated_errors

# KEYS: pending, pending-versions. ARGV: id and version in turn.
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
    """What producer.py has marked. Scripts clear marks, so that a newer one set meanwhile stays.

    Every method raises DependencyUnavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._clear = redis.register_script(_CLEAR)
        self._drop_orphans = redis.register_script(_DROP_ORPHANS)

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
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zcard(keys.PENDING)
                pipe.zrange(keys.PENDING, 0, 0, withscores=True)
                count, oldest = await pipe.execute()
        return PendingSummary(count, float(oldest[0][1]) if oldest else None)

    async def drop_orphans(self, accepted_before: float) -> int:
        """Drop old marks when no message is left that could settle them; says how many.

        Somebody who empties the queue by hand leaves such marks.
        """
        arguments = [*_KEYS, keys.QUEUE, keys.TAKEN, keys.UNACKED]
        with translated_errors():
            return int(await self._drop_orphans(keys=arguments, args=[accepted_before]))
