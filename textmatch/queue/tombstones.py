"""Tombstones: the version up to which a document is deleted. They keep older writes from restoring it.

There is one for each deleted id, and one for each delete by a filter, for documents that were still queued
when the delete was made. Both expire after `TEXTMATCH_TOMBSTONE_SECONDS` (services/matcher/settings.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis

from textmatch.documents import Document
from textmatch.filters import (
    Condition,
    FieldExists,
    FieldIsNull,
    FieldMatch,
    FieldPrefix,
    FieldRange,
    FieldTimeRange,
    Filter,
    HasId,
)
from textmatch.queue.keys import CollectionKeys
from textmatch.queue.redis_client import translated_errors

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

# KEYS: filters by version, filters by the time of their end. ARGV: now, end, version, filter.
_ADD_FILTER = """
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1])) do
  redis.call('ZREM', KEYS[1], ended)
  redis.call('ZREM', KEYS[2], ended)
end
local known = redis.call('ZSCORE', KEYS[1], ARGV[4])
if not known or tonumber(known) < tonumber(ARGV[3]) then
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[4])
end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[4])
"""

_CONDITIONS: dict[str, Any] = {
    "match": FieldMatch,
    "range": FieldRange,
    "time_range": FieldTimeRange,
    "prefix": FieldPrefix,
    "exists": FieldExists,
    "is_null": FieldIsNull,
    "has_id": HasId,
}
_CONDITION_NAMES = {kind: name for name, kind in _CONDITIONS.items()}


class Tombstones:
    """The tombstones of one collection by document id; `filters` has those of deletes by a filter.

    Every method raises DependencyUnavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis, keys: CollectionKeys) -> None:
        self._redis = redis
        self._key = keys.tombstone
        self._add = redis.register_script(_ADD)
        self.filters = FilterTombstones(redis, keys)

    async def add(self, versions: Mapping[str, int], ttl_seconds: int) -> None:
        """Mark documents as deleted up to these versions; a higher tombstone stays.

        Args:
            ttl_seconds: must be longer than a message can stay in the queue.
        """
        with translated_errors():
            await self._add(
                keys=[self._key(document_id) for document_id in versions],
                args=[ttl_seconds, *versions.values()],
            )

    async def get(self, ids: Iterable[str]) -> dict[str, int]:
        """The tombstones of those documents that have one."""
        asked = list(ids)
        if not asked:
            return {}
        with translated_errors():
            found = await self._redis.mget([self._key(document_id) for document_id in asked])
        pairs = zip(asked, found, strict=True)
        return {document_id: int(version) for document_id, version in pairs if version is not None}

    async def covering(self, documents: Collection[Document]) -> dict[str, int]:
        """The tombstones, by id, that delete these versions of the documents."""
        versions = {document.id: document.version for document in documents}
        found = await self.get(versions)
        return {one: version for one, version in found.items() if version >= versions[one]}


@dataclass(frozen=True)
class FilterTombstone:
    """Documents that match are deleted up to this version; it expires after `ttl_seconds`."""

    condition: Filter
    version: int
    ttl_seconds: int


class FilterTombstones:
    """Every method raises DependencyUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis, keys: CollectionKeys) -> None:
        self._redis = redis
        self._versions = keys.filter_tombstones
        self._ends = keys.filter_tombstone_ends
        self._add = redis.register_script(_ADD_FILTER)

    async def add(self, tombstone: FilterTombstone) -> None:
        """Mark what matches as deleted; a higher version of the same filter stays."""
        now = time.time()
        text = json.dumps(_to_json(tombstone.condition))
        arguments: list[str | float] = [now, now + tombstone.ttl_seconds, tombstone.version, text]
        with translated_errors():
            await self._add(keys=[self._versions, self._ends], args=arguments)

    async def from_version(self, version: int) -> list[FilterTombstone]:
        """Those that may cover documents of this version and newer ones."""
        with translated_errors():
            found: Any = await self._redis.zrange(
                self._versions, version, "+inf", byscore=True, withscores=True
            )
            if not found:
                return []
            ends = await self._redis.zmscore(self._ends, [text for text, _ in found])
        now = time.time()
        return [
            FilterTombstone(_from_json(json.loads(text)), int(covered), max(1, round(end - now)))
            for (text, covered), end in zip(found, ends, strict=True)
            if end is not None and end > now
        ]


def _to_json(condition: Condition) -> list[Any]:
    if isinstance(condition, Filter):
        clauses = (condition.must, condition.should, condition.must_not)
        return [
            "filter",
            *([_to_json(child) for child in clause] for clause in clauses),
            condition.min_should,
        ]
    values = [value.isoformat() if isinstance(value, datetime) else value for value in astuple(condition)]
    return [_CONDITION_NAMES[type(condition)], *values]


def _from_json(content: list[Any]) -> Any:
    name, *values = content
    if name == "filter":
        must, should, must_not = (tuple(_from_json(child) for child in clause) for clause in values[:3])
        return Filter(must, should, must_not, values[3])
    if name == "time_range":
        field, *bounds = values
        return FieldTimeRange(field, *(bound and datetime.fromisoformat(bound) for bound in bounds))
    return _CONDITIONS[name](*(tuple(value) if isinstance(value, list) else value for value in values))
