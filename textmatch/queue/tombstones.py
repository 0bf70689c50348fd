"""Up to which version documents are deleted, so that older writes do not bring them back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from redis.asyncio import Redis

from textmatch.queue import keys
from textmatch.queue.connection import translated_errors
from textmatch.queue.filter_tombstones import FilterTombstones

# KEYS: one for each document. ARGV: seconds to live, then the versions in the order of the keys.
_ADD = """
for i, key in ipairs(KEYS) do
  local known = redis.call('GET', key)
  if known and tonumber(known) > tonumber(ARGV[i + 1]) then
    redis.call('EXPIRE', key, ARGV[1])
  else
    redis.call('SET', key, ARGV[i + 1], 'EX', ARGV[1])
  end
end
"""


class Tombstones:
    """By document id; `filters` has those of deletes by a filter.

    Every method raises DependencyUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._add = redis.register_script(_ADD)
        self.filters = FilterTombstones(redis)

    async def add(self, versions: Mapping[str, int], ttl_seconds: int) -> None:
        """Documents are deleted up to these versions; a higher tombstone stays.

        Args:
            ttl_seconds: must be longer than a message can stay in the queue.
        """
        with translated_errors():
            await self._add(
                keys=[keys.tombstone(document_id) for document_id in versions],
                args=[ttl_seconds, *versions.values()],
            )

    async def get(self, ids: Iterable[str]) -> dict[str, int]:
        """The tombstones there are for these documents."""
        asked = list(ids)
        if not asked:
            return {}
        with translated_errors():
            found = await self._redis.mget([keys.tombstone(document_id) for document_id in asked])
        pairs = zip(asked, found, strict=True)
        return {document_id: int(version) for document_id, version in pairs if version is not None}
