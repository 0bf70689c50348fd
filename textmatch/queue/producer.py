"""Put documents into the queue."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from redis.asyncio import Redis

from textmatch.collection_config import CollectionConfig
from textmatch.documents import Document
from textmatch.errors import CollectionNotFound
from textmatch.queue import messages
from textmatch.queue.keys import Keys
from textmatch.queue.redis_client import flattened, translated_errors
from textmatch.time_slices import in_slices

# Most of a message's cost does not depend on its size. Therefore one request should be one message.
_TARGET_DOCUMENTS = messages.MAX_DOCUMENTS
_TARGET_BYTES = 256 * 1024
# Sending more at once would keep other calls waiting, here and in Redis.
_STEP_BYTES = 1024 * 1024

# Marks and messages in one step: neither a killed process nor a full Redis leaves one without the other.
# No mark and no message is added for a collection that has been deleted.
# KEYS: pending, pending-versions, queue, collections. ARGV: name and generation of the collection, now, the
# number of messages, the messages, then ids and versions. Returns whether the collection exists.
_ENQUEUE = """
local entry = redis.call('HGET', KEYS[4], ARGV[1])
if not entry or cjson.decode(entry).generation ~= ARGV[2] then
  return 0
end
local last_message = 4 + tonumber(ARGV[4])
for i = last_message + 1, #ARGV, 2 do
  local id, version = ARGV[i], ARGV[i + 1]
  if tonumber(redis.call('HGET', KEYS[2], id) or 0) < tonumber(version) then
    redis.call('HSET', KEYS[2], id, version)
    redis.call('ZADD', KEYS[1], ARGV[3], id)
  end
end
for i = 5, last_message do
  redis.call('LPUSH', KEYS[3], ARGV[i])
end
return 1
"""


class Producer:
    """Every method raises DependencyUnavailable when Redis does not answer or is full.

    Nothing was put into the queue then, unless only the answer was lost. Of more than 1 MiB, a part may have
    been put there.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._enqueue = redis.register_script(_ENQUEUE)

    async def enqueue(
        self, collection: CollectionConfig, documents: Sequence[Document], traceparent: str = ""
    ) -> None:
        """Mark documents pending and publish them; returns when Redis has them. Every version is set.

        Other calls run in between.

        Raises:
            CollectionNotFound: the collection has been deleted.
        """
        envelope = messages.Envelope(
            collection.name, collection.generation, accepted_at=time.time(), traceparent=traceparent
        )
        packed: list[str] = []
        packed_bytes = 0
        versions: dict[str, int] = {}
        async for batch, argument in in_slices(encode(documents, envelope)):
            message = messages.pack(argument, self._keys.queue)
            if packed and packed_bytes + len(message) > _STEP_BYTES:
                await self._enqueue_step(envelope, packed, versions)
                packed, packed_bytes, versions = [], 0, {}
            packed.append(message)
            packed_bytes += len(message)
            for document in batch:
                versions[document.id] = max(document.version, versions.get(document.id, 0))
        await self._enqueue_step(envelope, packed, versions)

    async def first_version(
        self, collection: CollectionConfig, request_id: str, version: int, ttl_seconds: int
    ) -> int:
        """The version of the first try of a request; `version` if this is the first.

        The record is older than what the request enqueues. A replica of Redis that has lost the record has
        therefore lost the effect too, and the next try may have a new version.

        Args:
            ttl_seconds: how long the record is kept from now on.
        """
        state = self._keys.collection(collection.name, collection.generation)
        key = state.request_version(request_id)
        with translated_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(key, version, nx=True, ex=ttl_seconds)
                pipe.expire(key, ttl_seconds)
                pipe.get(key)
                *_, first = await pipe.execute()
        return int(first)

    async def publish(self, task_arguments: Iterable[str]) -> None:
        """Publish tasks with these arguments, as messages.py describes them."""
        packed = [messages.pack(argument, self._keys.queue) for argument in task_arguments]
        with translated_errors():
            await self._redis.lpush(self._keys.queue, *packed)

    async def _enqueue_step(
        self, envelope: messages.Envelope, packed: Sequence[str], versions: Mapping[str, int]
    ) -> None:
        names = (envelope.collection, envelope.generation)
        state = self._keys.collection(*names)
        script_keys = [state.pending, state.pending_versions, self._keys.queue, self._keys.collections]
        arguments = [*names, envelope.accepted_at, len(packed), *packed, *flattened(versions.items())]
        with translated_errors():
            is_enqueued = await self._enqueue(keys=script_keys, args=arguments)
        if not is_enqueued:
            raise CollectionNotFound(envelope.collection)


def encode(
    documents: Iterable[Document], envelope: messages.Envelope
) -> Iterator[tuple[Sequence[Document], str]]:
    """Batches of a size that suits the encoder, each with the argument of its task."""
    batch: list[Document] = []
    entries: list[str] = []
    batch_bytes = 0
    for document in documents:
        entry = json.dumps(messages.document_as_json(document), ensure_ascii=False)
        entry_bytes = len(entry.encode())
        if batch and (len(batch) == _TARGET_DOCUMENTS or batch_bytes + entry_bytes > _TARGET_BYTES):
            yield batch, envelope.wrap(entries)
            batch, entries, batch_bytes = [], [], 0
        batch.append(document)
        entries.append(entry)
        batch_bytes += entry_bytes
    if batch:
        yield batch, envelope.wrap(entries)
