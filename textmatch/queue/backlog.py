"""How much waits, of what size."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from textmatch.queue import keys
from textmatch.queue.connection import translated_errors

# Redis measures so many of the queue's nodes, newest first, and takes the others for as large on average. A
# node is 8 KiB of small messages or one larger message.
_SAMPLED_NODES = 1_000


@dataclass(frozen=True)
class BacklogSize:
    """Documents that wait, and the memory of the messages that wait."""

    documents: int
    size_bytes: int


class Backlog:
    """Measured anew each time and never counted up and down, so that no crash can make it wrong."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def measure(self) -> BacklogSize:
        """The size now, messages of other producers included, with at least one document each.

        Raises:
            DependencyUnavailable: Redis does not answer.
        """
        with translated_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zcard(keys.PENDING)
                pipe.llen(keys.QUEUE)
                pipe.memory_usage(keys.QUEUE, samples=_SAMPLED_NODES)
                marked, messages, size_bytes = await pipe.execute()
        return BacklogSize(documents=max(marked, messages), size_bytes=size_bytes or 0)
