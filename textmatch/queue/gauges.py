"""How much waits and how much has failed, read from Redis every few seconds by each process that shows it."""

from __future__ import annotations

import asyncio
import logging
import time

from prometheus_client import Gauge

from textmatch.errors import DependencyUnavailable
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.pending import Pending

_log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 5.0
_ORPHAN_SECONDS = 120.0

QUEUE_DOCUMENTS = Gauge("textmatch_ingest_queue_documents", "Documents accepted and not searchable yet.")
OLDEST_SECONDS = Gauge("textmatch_ingest_oldest_seconds", "Age of the oldest of them; 0 if there is none.")
DEAD_LETTERS = Gauge("textmatch_dead_letters", "Documents and messages in the dead letters.")


async def sample_forever(pending: Pending, dead_letters: DeadLetters) -> None:
    """Keep the gauges up to date, and drop marks that nothing will settle."""
    while True:
        try:
            await _sample(pending, dead_letters)
        except DependencyUnavailable as error:
            _log.warning("queue not sampled", extra={"error": str(error)})
        await asyncio.sleep(_INTERVAL_SECONDS)


async def _sample(pending: Pending, dead_letters: DeadLetters) -> None:
    now = time.time()
    if dropped := await pending.drop_orphans(now - _ORPHAN_SECONDS):
        _log.warning("dropped marks of documents that are in no message", extra={"count": dropped})
    summary = await pending.summary()
    QUEUE_DOCUMENTS.set(summary.count)
    OLDEST_SECONDS.set(summary.oldest_seconds(now))
    DEAD_LETTERS.set(await dead_letters.count())
