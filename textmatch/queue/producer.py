"""Put documents into the queue."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence

from redis.asyncio import Redis

from textmatch.documents import Document
from textmatch.queue import keys, messages
from textmatch.queue.redis_client import flattened, translated_errors
from textmatch.time_slices import in_slices

# Most of a message's cost does not depend on its size. Therefore one request should be one message.
_TARGET_DOCUMENTS = messages.MAX_DOCUMENTS
_TARGET_BYTES = 256 * 1024

# Marks and messages in one step: neither a killed process nor a full Redis leaves one without the other.
# KEYS: pending, pending-versions, queue. ARGV: now, number of messages, the messages, then ids and versions.
_ENQUEUE = """
local last_message = 2 + tonumber(ARGV[2])
for i = last_message + 1, #ARGV, 2 do
  local id, version = ARGV[i], ARGV[i + 1]
  if tonumber(redis.call('HGET', KEYS[2], id) or 0) < tonumber(version) then
    redis.call('HSET', KEYS[2], id, version)
    redis.call('ZADD', KEYS[1], ARGV[1], id)
  end
end
for i = 3, last_message do
  redis.call('LPUSH', KEYS[3], ARGV[i])
end
"""

_KEYS = [keys.PENDING, keys.PENDING_VERSIONS, keys.QUEUE]


class Producer:
    """Every method raises DependencyUnavailable when Redis does not answer or is full.

    Nothing was put into the queue then, unless only the answer was lost.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._enqueue = redis.register_script(_ENQUEUE)

    async def enqueue(self, documents: Sequence[Document], traceparent: str = "") -> None:
        """Mark documents pending and publish them; returns when Redis has them. Every version is set."""
        accepted_at = time.time()
        versions: dict[str, int] = {}
        for document in documents:
            versions[document.id] = max(document.version, versions.get(document.id, 0))
        tasks = in_slices(encode(documents, accepted_at, traceparent))
        packed = [messages.pack(argument) async for argument in tasks]
        arguments = [accepted_at, len(packed), *packed, *flattened(versions.items())]
        with translated_errors():
            await self._enqueue(keys=_KEYS, args=arguments)

    async def first_version(self, request_id: str, version: int, ttl_seconds: int) -> int:
        """The version of the first try of a request; `version` if this is the first.

        The record is older than what the request enqueues. A replica of Redis that has lost the record has
        therefore lost the effect too, and the next try may have a new version.

        Args:
            ttl_seconds: how long the record is kept from now on.
        """
        key = keys.request_version(request_id)
        with translated_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(key, version, nx=True, ex=ttl_seconds)
                pipe.expire(key, ttl_seconds)
                pipe.get(key)
                *_, first = await pipe.execute()
        return int(first)

    async def publish(self, task_arguments: Iterable[str]) -> None:
        """Publish tasks with these arguments, as messages.py describes them."""
        packed = [messages.pack(argument) for argument in task_arguments]
        with translated_errors():
            await self._redis.lpush(keys.QUEUE, *packed)


def encode(documents: Sequence[Document], accepted_at: float, traceparent: str = "") -> Iterator[str]:
    """Task arguments with these documents, each of a size that suits the encoder."""
    batch: list[str] = []
    batch_bytes = 0
    for document in documents:
        entry = json.dumps(messages.document_as_json(document), ensure_ascii=False)
        entry_bytes = len(entry.encode())
        if batch and (len(batch) == _TARGET_DOCUMENTS or batch_bytes + entry_bytes > _TARGET_BYTES):
            yield messages.join_entries(batch, accepted_at, traceparent)
            batch, batch_bytes = [], 0
        batch.append(entry)
        batch_bytes += entry_bytes
    if batch:
        yield messages.join_entries(batch, accepted_at, traceparent)
