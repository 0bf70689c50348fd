"""What paused workers wait for, in Redis, so that every matcher can tell an operator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from redis.asyncio import Redis

from textmatch.queue.keys import Keys
from textmatch.queue.redis_client import translated_errors
from textmatch.types import Problem

# A worker that is gone has no problems.
TTL_SECONDS = 20


class WorkerProblems:
    """Every method raises DependencyUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def report(self, worker: str, problems: Sequence[Problem]) -> None:
        """Set the problems of a worker. They must be reported again within TTL_SECONDS."""
        key = self._keys.worker_problems(worker)
        with translated_errors():
            if problems:
                content = json.dumps([asdict(problem) for problem in problems])
                await self._redis.sadd(self._keys.troubled_workers, worker)
                await self._redis.set(key, content, ex=TTL_SECONDS)
            else:
                await self._redis.delete(key)
                await self._redis.srem(self._keys.troubled_workers, worker)

    async def all(self) -> list[Problem]:
        """The problems of all workers, each once."""
        with translated_errors():
            workers = sorted(map(str, await self._redis.smembers(self._keys.troubled_workers)))
            if not workers:
                return []
            found = await self._redis.mget([self._keys.worker_problems(worker) for worker in workers])
            gone = [worker for worker, content in zip(workers, found, strict=True) if content is None]
            if gone:
                await self._redis.srem(self._keys.troubled_workers, *gone)
        problems = [Problem(**one) for content in found if content for one in json.loads(content)]
        return sorted(set(problems), key=lambda one: (one.collection, one.reason, one.message))
