"""Tombstones: what a delete has covered. They keep older writes from restoring it.

A tombstone of an id has a version and a time of acceptance (clock.py). It covers a document that has this
version or an older one, and a document of any version that was accepted earlier. A delete up to a
version sets the first. A delete without a version sets both: the version is the highest one that is known
for the id.

    write a, version 2         accepted at 100
    delete a                   accepted at 150: version 2, time 150
    write a, version 1         refused: it is older than what was deleted
    write a, version 3         accepted at 200: stored

A delete that is an item among documents to ingest (producer.py) covers what was accepted before the request,
and earlier items of it. Its time is therefore that before the time of the request.

Tombstones of ids are fields of a hash. There is one hash for all that expire on the same day; the last
field that is added decides.

A delete by a filter has one tombstone too, for documents that were still queued when it was made. It covers
a document that was accepted earlier, matches, and is not newer than the version of the delete, if that has
one.

All of them are kept for `TEXTMATCH_TOMBSTONE_SECONDS` (textmatch/runtime/settings.py) at least.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from textmatch.documents import MAX_VERSION, Document
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
from textmatch.queue.clock import CLOCK_LUA, UNREPEATED, Request
from textmatch.queue.keys import CollectionKeys
from textmatch.queue.redis_client import flattened, run_confirmed, translated_errors

_FILTERS_PER_PAGE = 100

# To be put in front of scripts.
#   bury(registry, seconds, ids, versions, accepted): adds tombstones that expire after `seconds` or up to a
#   day later.
#   drop_letter(letters, versions, times, id): drops a dead letter.
BURY_LUA = """
local function bury(registry, seconds, ids, versions, accepted)
  local now = tonumber(redis.call('TIME')[1])
  local day = text(math.ceil((now + seconds) / 86400) * 86400)
  redis.call('ZADD', registry, day, day)
  for i, id in ipairs(ids) do
    redis.call('HSET', registry .. ':' .. day, id, text(versions[i]) .. ' ' .. text(accepted[i]))
  end
  redis.call('EXPIREAT', registry .. ':' .. day, day)
  redis.call('ZREMRANGEBYSCORE', registry, '-inf', now)
end

local function drop_letter(letters, versions, times, id)
  redis.call('HDEL', letters, id)
  redis.call('HDEL', versions, id)
  redis.call('ZREM', times, id)
end
"""

# ARGV of the following: how long to remember the request (0: not). KEYS: clock, request.
# Sets `accepted`, the time of the first try, and `is_new`.
_ACCEPT = (
    CLOCK_LUA
    + """
local seconds = tonumber(ARGV[1])
local accepted = seconds > 0 and tonumber(redis.call('HGET', KEYS[2], '') or 0) or 0
local is_new = accepted == 0
if is_new then
  accepted = tick(KEYS[1], 1)
  if seconds > 0 then
    redis.call('HSET', KEYS[2], '', text(accepted))
  end
end
if seconds > 0 then
  redis.call('EXPIRE', KEYS[2], seconds)
end
"""
)

# The tombstones, and everything else that belongs to deleted documents, in one step: a write that is
# accepted after it has a later time. A later try of the same request changes nothing, because this would
# cover what came in between. KEYS: clock, request, tombstones, pending, pending-versions, letters,
# letter-versions, letter-times. ARGV: how long to remember the request, how long to keep tombstones, the
# version (0: none), ids.
_DELETE = (
    _ACCEPT
    + BURY_LUA
    + """
if not is_new then
  return accepted
end
local version, ids, times = tonumber(ARGV[3]), {}, {}
for i = 4, #ARGV do
  ids[i - 3] = ARGV[i]
end
local versions, before = tombstones_of(KEYS[3], ids)
local pending = redis.call('HMGET', KEYS[5], unpack(ids))
local failed = redis.call('HMGET', KEYS[7], unpack(ids))
for i, id in ipairs(ids) do
  local known = math.max(tonumber(pending[i] or 0), tonumber(failed[i] or 0))
  versions[i] = math.max(versions[i], version > 0 and version or known)
  times[i] = version > 0 and before[i] or accepted
  if pending[i] and tonumber(pending[i]) <= versions[i] then
    redis.call('HDEL', KEYS[5], id)
    redis.call('ZREM', KEYS[4], id)
  end
  if failed[i] and tonumber(failed[i]) <= versions[i] then
    drop_letter(KEYS[6], KEYS[7], KEYS[8], id)
  end
end
bury(KEYS[3], tonumber(ARGV[2]), ids, versions, times)
return accepted
"""
)

# KEYS: tombstones. ARGV: how long to keep them, then ids, versions and times of acceptance.
_ADD = (
    CLOCK_LUA
    + BURY_LUA
    + """
local ids, versions, accepted = {}, {}, {}
for i = 2, #ARGV, 3 do
  ids[#ids + 1] = ARGV[i]
  versions[#ids], accepted[#ids] = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
end
local known, before = tombstones_of(KEYS[1], ids)
for i in ipairs(ids) do
  versions[i], accepted[i] = math.max(versions[i], known[i]), math.max(accepted[i], before[i])
end
bury(KEYS[1], tonumber(ARGV[1]), ids, versions, accepted)
"""
)

# KEYS: tombstones. ARGV: ids. Returns versions and times of acceptance; of both 0 if there is none.
_GET = (
    CLOCK_LUA
    + """
local versions, accepted = tombstones_of(KEYS[1], ARGV)
return {versions, accepted}
"""
)

# KEYS: clock, request, filters by time of acceptance, filters by the end of their time.
# ARGV: how long to remember the request, how long to keep it, the filter.
_DELETE_BY_FILTER = (
    _ACCEPT
    + """
if not is_new then
  return accepted
end
local now = tonumber(redis.call('TIME')[1])
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, 1000)) do
  redis.call('ZREM', KEYS[3], ended)
  redis.call('ZREM', KEYS[4], ended)
end
redis.call('ZADD', KEYS[3], text(accepted), ARGV[3])
redis.call('ZADD', KEYS[4], now + tonumber(ARGV[2]), ARGV[3])
return accepted
"""
)

# KEYS: filters by time of acceptance, filters by the end of their time. ARGV: the time, how many.
# Returns filters, their times and the seconds that are left.
_FILTERS_AFTER = """
local now = tonumber(redis.call('TIME')[1])
local answer = {}
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #found, 2 do
  local left = math.max(1, tonumber(redis.call('ZSCORE', KEYS[2], found[i]) or 0) - now)
  answer[#answer + 1] = {found[i], tonumber(found[i + 1]), left}
end
return answer
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


@dataclass(frozen=True)
class Tombstone:
    """Covers documents up to this version, and those that were accepted before this time."""

    version: int
    accepted_us: int

    def covers(self, version: int, accepted_us: int) -> bool:
        """Whether a document with this version and time of acceptance is deleted."""
        return version <= self.version or (self.accepted_us > 0 and accepted_us <= self.accepted_us)

    @classmethod
    def of(cls, deletion: Document) -> Tombstone:
        """What a delete covers that was an item among documents, after it was accepted."""
        return cls(deletion.version, 0 if deletion.version else deletion.accepted_us - 1)

    def __or__(self, other: Tombstone) -> Tombstone:
        """Covers what either of two tombstones of an id covers."""
        return Tombstone(max(self.version, other.version), max(self.accepted_us, other.accepted_us))


class Tombstones:
    """The tombstones of one collection by document id; `filters` has those of deletes by a filter.

    Every method raises DependencyUnavailable when Redis does not answer.

    Args:
        replicas: how many replicas must have a delete before it is accepted.
    """

    def __init__(self, redis: Redis, keys: CollectionKeys, replicas: int = 0) -> None:
        self._redis = redis
        self._replicas = replicas
        self._state = keys
        self._delete = redis.register_script(_DELETE)
        self._add = redis.register_script(_ADD)
        self._get = redis.register_script(_GET)
        self.filters = FilterTombstones(redis, keys, replicas)

    async def delete(
        self, ids: Iterable[str], version: int | None, *, ttl_seconds: int, request: Request = UNREPEATED
    ) -> int:
        """Delete documents up to a version, or all that was accepted so far: none of it is pending then.

        Returns:
            The time of the delete, in microseconds: that of the first try of the request.
        """
        state, letters = self._state, self._state.letters
        keys = [
            state.clock,
            state.request(request.id),
            state.tombstones,
            state.pending,
            state.pending_versions,
        ]
        keys += [letters.dead_letters, letters.dead_letter_versions, letters.dead_letter_times]
        arguments: list[str | int] = [
            request.ttl_seconds,
            ttl_seconds,
            version or 0,
            *dict.fromkeys(ids),
        ]
        return int(await self._run(self._delete, keys, arguments))

    async def add(self, versions: Mapping[str, int], ttl_seconds: int) -> None:
        """Mark documents as deleted up to these versions; a higher tombstone stays.

        Args:
            ttl_seconds: must be longer than a message can stay in the queue.
        """
        await self.add_all({one: Tombstone(version, 0) for one, version in versions.items()}, ttl_seconds)

    async def add_all(self, tombstones: Mapping[str, Tombstone], ttl_seconds: int) -> None:
        """As `add`, with times of acceptance."""
        if not tombstones:
            return
        rows = [(one, tombstone.version, tombstone.accepted_us) for one, tombstone in tombstones.items()]
        await self._run(self._add, [self._state.tombstones], [ttl_seconds, *flattened(rows)])

    async def get(self, ids: Iterable[str]) -> dict[str, Tombstone]:
        """The tombstones of those documents that have one."""
        asked = list(ids)
        if not asked:
            return {}
        with translated_errors():
            versions, accepted = await self._get(keys=[self._state.tombstones], args=asked)
        rows = zip(asked, versions, accepted, strict=True)
        return {one: Tombstone(version, at) for one, version, at in rows if version or at}

    async def _run(self, script: AsyncScript, keys: list[str], arguments: list[str | int]) -> Any:
        return await run_confirmed(self._redis, script, keys=keys, args=arguments, replicas=self._replicas)

    async def covering(self, documents: Collection[Document]) -> dict[str, Tombstone]:
        """The tombstones, by id, that delete these documents."""
        known = {document.id: document for document in documents}
        found = await self.get(known)
        return {
            one: tombstone
            for one, tombstone in found.items()
            if tombstone.covers(known[one].version, known[one].accepted_us)
        }


@dataclass(frozen=True)
class FilterTombstone:
    """Covers documents that match, are not newer, and were accepted before; expires after `ttl_seconds`."""

    condition: Filter
    version: int
    accepted_us: int
    ttl_seconds: int


class FilterTombstones:
    """Every method raises DependencyUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis, keys: CollectionKeys, replicas: int) -> None:
        self._redis = redis
        self._replicas = replicas
        self._state = keys
        self._delete = redis.register_script(_DELETE_BY_FILTER)
        self._after = redis.register_script(_FILTERS_AFTER)

    async def delete(
        self, condition: Filter, version: int | None, *, ttl_seconds: int, request: Request = UNREPEATED
    ) -> int:
        """Delete what matches, up to a version, or all of it that was accepted so far.

        Returns:
            The time of the delete, in microseconds: that of the first try of the request.
        """
        state = self._state
        text = json.dumps([version or MAX_VERSION, _to_json(condition)])
        keys = [state.clock, state.request(request.id), state.filter_tombstones, state.filter_tombstone_ends]
        arguments: list[str | int] = [request.ttl_seconds, ttl_seconds, text]
        accepted_us = await run_confirmed(
            self._redis, self._delete, keys=keys, args=arguments, replicas=self._replicas
        )
        return int(accepted_us)

    async def after(self, accepted_us: int) -> AsyncIterator[list[FilterTombstone]]:
        """Pages of the deletes that came after this time: only they cover documents accepted then."""
        keys = [self._state.filter_tombstones, self._state.filter_tombstone_ends]
        while True:
            with translated_errors():
                found = await self._after(keys=keys, args=[accepted_us, _FILTERS_PER_PAGE])
            page = [_tombstone(*row) for row in found]
            if page:
                yield page
            if len(page) < _FILTERS_PER_PAGE:
                return
            accepted_us = page[-1].accepted_us


def _tombstone(text: str, accepted_us: int, ttl_seconds: int) -> FilterTombstone:
    version, condition = json.loads(text)
    return FilterTombstone(_from_json(condition), version, accepted_us, ttl_seconds)


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
