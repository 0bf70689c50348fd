"""Putting documents into the queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable
from textmatch.queue import messages
from textmatch.queue.pending import Pending

_log = logging.getLogger(__name__)

_THREADS = 4


class Producer:
    """Publishes from threads of its own, because Celery blocks. Close it at the end."""

    def __init__(self, app: Celery, pending: Pending) -> None:
        self._app = app
        self._pending = pending
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="publish")
        self._running: set[asyncio.Task[None]] = set()

    async def enqueue(self, documents: Sequence[Document]) -> None:
        """Mark documents pending, then publish them; returns when Redis has them. Every version is set.

        Goes on to the end even if the caller is cancelled, so that no mark is left without its message.

        Raises:
            DependencyUnavailable: Redis does not answer; the marks are undone.
        """
        task = asyncio.create_task(self._enqueue(documents))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.shield(task)

    async def publish(self, task_arguments: Iterable[str]) -> None:
        """Publish messages as messages.py describes them.

        Raises:
            DependencyUnavailable: Redis does not answer; some may have been published.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._publish, task_arguments)
        except (KombuError, RedisError, OSError) as error:
            raise DependencyUnavailable(f"Redis does not answer: {error}", retry_delay_seconds=1.0) from error

    async def close(self) -> None:
        """Wait for what is being published, and close the connections."""
        await asyncio.gather(*self._running, return_exceptions=True)
        self._threads.shutdown()
        self._app.close()

    async def _enqueue(self, documents: Sequence[Document]) -> None:
        accepted_at = time.time()
        versions: dict[str, int] = {}
        for document in documents:
            versions[document.id] = max(document.version, versions.get(document.id, 0))
        before = await self._pending.mark(versions, accepted_at)
        try:
            await self.publish(messages.encode(documents, accepted_at))
        except DependencyUnavailable:
            await self._undo(versions, before)
            raise

    async def _undo(self, versions: dict[str, int], before: dict[str, int]) -> None:
        try:
            await self._pending.undo(versions, before)
        except DependencyUnavailable as error:
            _log.warning("marks stay that nothing will settle", extra={"error": str(error)})

    def _publish(self, task_arguments: Iterable[str]) -> None:
        with self._app.producer_or_acquire() as celery_producer:
            for argument in task_arguments:
                self._app.send_task(
                    messages.TASK_NAME,
                    args=[argument],
                    producer=celery_producer,
                    # Celery would put a shortened copy of the argument into the headers.
                    argsrepr="",
                    kwargsrepr="",
                )
