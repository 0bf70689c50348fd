"""Documents that are accepted and not yet settled, by their highest accepted version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

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


@dataclass(frozen=True)
class PendingSummary:
    """The number of pending documents, and when the oldest was accepted, in seconds since 1970."""

    count: int
    oldest_accepted_at: float | None

    def oldest_seconds(self, now: float) -> float:
        """Age of the oldest; 0 if there is none."""
        return 0.0 if self.oldest_accepted_at is None else max(0.0, now - self.oldest_accepted_at)


class Pending:
    """The marks that producer.py sets for the documents of one collection.

    Scripts clear them, so a newer mark set at the same time stays.

    Every method raises DependencyUnavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis, keys: CollectionKeys) -> None:
        self._redis = redis
        self._pending = keys.pending
        self._versions = keys.pending_versions
        self._clear = redis.register_script(_CLEAR)
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

    async def summary(self) -> PendingSummary:
        """The number and age of all pending documents."""
        with translated_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zcard(self._pending)
                pipe.zrange(self._pending, 0, 0, withscores=True)
                count, oldest = await pipe.execute()
        return PendingSummary(count, float(oldest[0][1]) if oldest else None)

    async def drop_orphans(self, accepted_before: float, installation: Keys) -> int:
        """Drop old marks if the queue has no message that could settle them; returns how many.

        A queue that was emptied manually leaves such marks.
        """
        places = [installation.queue, installation.taken, installation.unacked]
        arguments = [self._pending, self._versions, *places]
        with translated_errors():
            return int(await self._drop_orphans(keys=arguments, args=[accepted_before]))
