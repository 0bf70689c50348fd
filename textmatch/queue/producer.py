"""Put documents into the queue."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from redis.asyncio import Redis

from textmatch.collection_config import CollectionConfig
from textmatch.documents import Document
from textmatch.errors import CollectionNotFound
from textmatch.queue import messages
from textmatch.queue.clock import CLOCK_LUA, UNREPEATED, Request
from textmatch.queue.keys import Keys
from textmatch.queue.pending import Watch
from textmatch.queue.redis_client import flattened, run_confirmed, translated_errors
from textmatch.queue.tombstones import BURY_LUA
from textmatch.time_slices import in_slices

# Most of a message's cost does not depend on its size. Therefore one request should be one message.
_TARGET_DOCUMENTS = messages.MAX_DOCUMENTS
_TARGET_BYTES = 256 * 1024
# Sending more at once would keep other calls waiting, here and in Redis.
_STEP_BYTES = 1024 * 1024

# Versions, marks and messages in one step: neither a killed process nor a full Redis leaves one without the
# other, and the order of versions is the order of acceptance.
#
# A document without a version gets the time of acceptance, or a higher version if one is pending, deleted or
# stored. A version that a tombstone covers is refused. A try after the first one repeats what the first one
# was given. Without a request, an acceptance can be repeated by its time.
#
# A delete gets its tombstone here, so that it counts from now on, and a pending mark until a worker has
# removed the document. Without a version it covers the highest one that is known, and everything that was
# accepted before. In the message its version is 0 then.
#
# KEYS: collections, clock, pending, pending-versions, queue, tombstones, request, letters, letter-versions,
# letter-times, watches, filter-tombstones. ARGV: name and generation of the collection, how long to
# remember the request (0: not), the time of acceptance (0: now), which step of the request it is, how long
# to keep tombstones, and the number of documents; for each its id, version (0: none), how many of the same
# id came before it, the stored version, and whether it is a delete (1); then the number of documents that
# expect a version, and for each its place from 1, the expected version, the one that was observed (0: there
# is no document), the mark of its watch and since when deletes were not observed; then for each message the
# number of its documents and its text. Returns the version of each document, or a `Refusal`; nothing if
# there is no such collection.
_ENQUEUE = (
    CLOCK_LUA
    + BURY_LUA
    + """
local DELETED, EXHAUSTED, MISMATCH = -1, -2, -3
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry or cjson.decode(entry).generation ~= ARGV[2] then
  return false
end
local ids, given, repeats, stored, is_delete, span = {}, {}, {}, {}, {}, 1
for i = 1, tonumber(ARGV[7]) do
  local at = 5 * i + 3
  ids[i], given[i], repeats[i], stored[i], is_delete[i] =
    ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), ARGV[at + 4] == '1'
  span = math.max(span, repeats[i] + 1)
end
local first_message, expectations = 5 * #ids + 9, {}
for _ = 1, tonumber(ARGV[first_message - 1]) do
  expectations[tonumber(ARGV[first_message])] = {
    expected = tonumber(ARGV[first_message + 1]),
    observed = tonumber(ARGV[first_message + 2]),
    mark = tonumber(ARGV[first_message + 3]),
    since = tonumber(ARGV[first_message + 4]),
  }
  first_message = first_message + 5
end
local last_filter_delete = tonumber(redis.call('ZREVRANGE', KEYS[12], 0, 0, 'WITHSCORES')[2] or 0)
local seconds, accepted = tonumber(ARGV[3]), tonumber(ARGV[4])
local first_try
if seconds > 0 then
  first_try = redis.call('HGET', KEYS[7], ARGV[5])
  accepted = tonumber(first_try or 0)
end
local is_new = accepted == 0
if is_new then
  accepted = tick(KEYS[2], span)
  if seconds > 0 then
    redis.call('HSET', KEYS[7], ARGV[5], text(accepted))
  end
end
local deleted, deleted_before = tombstones_of(KEYS[6], ids)
local pending, highest = redis.call('HMGET', KEYS[4], unpack(ids)), {}
local function holds(expectation, id, covered, deleted_at, newest)
  local mark = tonumber(redis.call('HGET', KEYS[11], id) or 0)
  if mark ~= expectation.mark or math.max(deleted_at, last_filter_delete) >= expectation.since then
    return false
  end
  local version = math.max(expectation.observed, newest)
  return expectation.expected == (version > covered and version or 0)
end
-- What the tombstones of this request cover.
local buried, buried_before = {}, {}
local versions, answer, changed = {}, {}, {}
for i, id in ipairs(ids) do
  local usual = given[i]
  if given[i] == 0 and not is_delete[i] then
    usual = accepted + repeats[i]
  end
  local version, field = usual, repeats[i] .. ':' .. id
  local newest = math.max(tonumber(pending[i] or 0), highest[id] or 0)
  local kept = first_try and redis.call('HGET', KEYS[7], field)
  if kept then
    version = tonumber(kept)
  elseif is_new or expectations[i] then
    -- What the first try could not decide is decided by a later one.
    local covered = math.max(deleted[i], buried[id] or 0)
    local known = math.max(covered, stored[i], newest, expectations[i] and expectations[i].observed or 0)
    if expectations[i] and not holds(expectations[i], id, covered, deleted_before[i], newest) then
      version = MISMATCH
    elseif is_delete[i] then
      local failed = tonumber(redis.call('HGET', KEYS[9], id) or 0)
      if given[i] == 0 then
        version = math.max(known, failed)
      end
      if failed > 0 and failed <= version then
        drop_letter(KEYS[8], KEYS[9], KEYS[10], id)
      end
      buried[id] = math.max(covered, version)
      buried_before[id] = math.max(
        deleted_before[i], buried_before[id] or 0, given[i] == 0 and accepted - 1 or 0)
    elseif given[i] == 0 then
      version = known < MAX_VERSION and math.max(usual, known + 1) or EXHAUSTED
    elseif given[i] <= covered then
      version = DELETED
    end
    if seconds > 0 and (version ~= usual or expectations[i]) then
      redis.call('HSET', KEYS[7], field, text(version))
    end
  end
  if version > newest or (is_delete[i] and version == newest) then
    redis.call('HSET', KEYS[4], id, text(version))
    redis.call('ZADD', KEYS[3], accepted / 1000000, id)
  end
  if version >= 0 then
    changed[#changed + 1] = id
  end
  highest[id] = math.max(version, highest[id] or 0)
  versions[i], answer[i] = text(version), version
  if version < 0 then
    versions[i] = '-1'
  elseif is_delete[i] then
    versions[i] = text(given[i])
  end
end
if #changed > 0 then
  redis.call('HDEL', KEYS[11], unpack(changed))
end
local tombstones = {{}, {}, {}}
for id, version in pairs(buried) do
  local count = #tombstones[1] + 1
  tombstones[1][count], tombstones[2][count], tombstones[3][count] = id, version, buried_before[id]
end
if #tombstones[1] > 0 then
  bury(KEYS[6], tonumber(ARGV[6]), unpack(tombstones))
end
local first = 1
for at = first_message, #ARGV, 2 do
  local last = first + tonumber(ARGV[at]) - 1
  local list, is_needed = table.concat(versions, ', ', first, last), false
  for i = first, last do
    is_needed = is_needed or answer[i] >= 0
  end
  if is_needed then
    local stamp = '{"accepted_us": ' .. text(accepted) .. ', "versions": [' .. list .. '], '
    redis.call('LPUSH', KEYS[5], stamp .. string.sub(ARGV[at + 1], 2))
  end
  first = last + 1
end
if seconds > 0 then
  redis.call('EXPIRE', KEYS[7], seconds)
end
return answer
"""
)


class Refusal(IntEnum):
    """Why a document is not accepted, in the place of its version."""

    # A tombstone covers its version.
    DELETED = -1
    # It has no version, and the highest possible version of its id is taken.
    EXHAUSTED = -2
    # The document does not have the version that it expects, or was changed at the same time.
    MISMATCH = -3


@dataclass(frozen=True)
class Observation:
    """The version of a document that is stored or queued, 0 if there is none; it was watched before."""

    version: int
    watch: Watch


@dataclass(frozen=True)
class Submission:
    """What the sender of documents knows about them.

    Args:
        stored: versions in the index by id, as far as they are known; documents without a version get
            higher ones, and deletes without a version cover them.
        request: what may be tried again.
        traceparent: the W3C trace context of the sender; empty if there is none.
        tombstone_seconds: how long deletes are remembered at least; needed if there are deletes.
        observed: by id, of the documents that expect a version.
    """

    stored: Mapping[str, int]
    request: Request = UNREPEATED
    traceparent: str = ""
    tombstone_seconds: int = 0
    observed: Mapping[str, Observation] = field(default_factory=dict)


_NOTHING_KNOWN = Submission({})


class Producer:
    """Every method raises DependencyUnavailable when Redis does not answer or is full.

    Nothing was put into the queue then, unless only the answer was lost or replicas did not confirm it. Of
    more than 1 MiB, a part may have been put there.

    Args:
        replicas: how many replicas must have documents before they are accepted.
    """

    def __init__(self, redis: Redis, keys: Keys, replicas: int = 0) -> None:
        self._redis = redis
        self._keys = keys
        self._replicas = replicas
        self._enqueue = redis.register_script(_ENQUEUE)

    async def enqueue(
        self,
        collection: CollectionConfig,
        documents: Sequence[Document],
        submission: Submission = _NOTHING_KNOWN,
    ) -> list[int]:
        """Mark documents pending and publish them; returns when Redis has them.

        Returns:
            The version of each, or a `Refusal`, which is negative. That of a delete is the highest one that
            is known to be deleted; 0 if none is known.

        Raises:
            CollectionNotFound: the collection has been deleted.
        """
        return await self._accept(collection, documents, submission, accepted_us=0)

    async def replay(self, collection: CollectionConfig, document: Document) -> None:
        """Publish a document again that was accepted before, with the version and the time of then.

        Raises:
            CollectionNotFound: the collection has been deleted.
        """
        await self._accept(collection, [document], _NOTHING_KNOWN, accepted_us=document.accepted_us)

    async def publish(self, task_arguments: Iterable[str], stamp: messages.Stamp | None = None) -> None:
        """Publish tasks with these arguments, as messages.py describes them."""
        await self.push(*(messages.pack(argument, self._keys.queue, stamp) for argument in task_arguments))

    async def push(self, *raw: str) -> None:
        """Put messages into the queue as they are."""
        with translated_errors():
            await self._redis.lpush(self._keys.queue, *raw)

    async def _accept(
        self,
        collection: CollectionConfig,
        documents: Sequence[Document],
        submission: Submission,
        *,
        accepted_us: int,
    ) -> list[int]:
        envelope = messages.Envelope(
            collection.name, collection.generation, traceparent=submission.traceparent
        )
        request, before = submission.request, Counter[str]()
        versions: list[int] = []
        fixed = request, accepted_us, submission.tombstone_seconds
        step = _Step(*fixed)
        async for batch, argument in in_slices(encode(documents, envelope)):
            message = messages.pack(argument, self._keys.queue)
            if step.packed and step.size_bytes + len(message) > _STEP_BYTES:
                versions += await self._run(envelope, step)
                step = _Step(*fixed, number=step.number + 1)
            step.packed += [len(batch), message]
            step.size_bytes += len(message)
            for one in batch:
                stored = submission.stored.get(one.id, 0)
                if one.expected_version is not None:
                    seen = submission.observed[one.id]
                    place, watch = len(step.rows) + 1, seen.watch
                    step.expectations.append(
                        (place, one.expected_version, seen.version, watch.mark, watch.since_us)
                    )
                step.rows.append((one.id, one.version, before[one.id], stored, int(one.deleted)))
                before[one.id] += 1
        return versions + await self._run(envelope, step)

    async def _run(self, envelope: messages.Envelope, step: _Step) -> list[int]:
        keys, names = self._keys, (envelope.collection, envelope.generation)
        state, request = keys.collection(*names), step.request
        script_keys = [keys.collections, state.clock, state.pending, state.pending_versions, keys.queue]
        script_keys += [state.tombstones, state.request(request.id)]
        letters = state.letters
        script_keys += [letters.dead_letters, letters.dead_letter_versions, letters.dead_letter_times]
        script_keys += [state.watches, state.filter_tombstones]
        fixed: list[str | int] = [
            *names,
            request.ttl_seconds,
            step.accepted_us,
            f"step-{step.number}",
            step.tombstone_seconds,
        ]
        versions = await run_confirmed(
            self._redis,
            self._enqueue,
            keys=script_keys,
            args=[
                *fixed,
                len(step.rows),
                *flattened(step.rows),
                len(step.expectations),
                *flattened(step.expectations),
                *step.packed,
            ],
            replicas=self._replicas,
        )
        if versions is None:
            raise CollectionNotFound(envelope.collection)
        return [int(version) for version in versions]


@dataclass
class _Step:
    """What is put into the queue at once.

    Attributes:
        accepted_us: when the documents were accepted; 0: now.
        rows: of each document the id, the version, how many of the same id came before it, the stored
            version, and whether it is a delete.
        expectations: of each document that expects a version its place in `rows` from 1, the expected
            version, the observed one, and its watch.
        packed: of each message the number of its documents and its text.
    """

    request: Request
    accepted_us: int
    tombstone_seconds: int
    number: int = 1
    rows: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    expectations: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    packed: list[str | int] = field(default_factory=list)
    size_bytes: int = 0


def encode(
    documents: Iterable[Document], envelope: messages.Envelope
) -> Iterator[tuple[Sequence[Document], str]]:
    """Batches of a size that suits the encoder, each with the argument of its task."""
    batch: list[Document] = []
    entries: list[str] = []
    batch_bytes = 0
    for document in documents:
        entry = json.dumps(messages.entry_of(document), ensure_ascii=False)
        entry_bytes = len(entry.encode())
        if batch and (len(batch) == _TARGET_DOCUMENTS or batch_bytes + entry_bytes > _TARGET_BYTES):
            yield batch, envelope.wrap(entries)
            batch, entries, batch_bytes = [], [], 0
        batch.append(document)
        entries.append(entry)
        batch_bytes += entry_bytes
    if batch:
        yield batch, envelope.wrap(entries)
