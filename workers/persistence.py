"""Trying a batch until every document in it is settled, whatever fails.

* What may pass (the encoder is overloaded, Qdrant does not answer) is waited out, without a limit on the
  number of tries and with no mark against the documents: exponential backoff with jitter, and never sooner
  than the server that refused has asked for.
* What only an operator can end (the index was built by another model, a key is missing) is waited out too,
  and reported as an error and in a gauge.
* Anything else is a bug, perhaps one that a single document sets off. After a few tries the batch is halved,
  and so on, until the documents that fail alone go to the dead letters and all others are indexed.

Waiting happens here, in the worker, with the message held by its lease: a worker that can do nothing should
not take more messages. But after `patience_seconds` the message goes to the end of the queue, so that one
batch that cannot be encoded does not stand in the way of all others.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections import Counter
from dataclasses import dataclass, replace

from textmatch import errors
from textmatch.documents import Document
from textmatch.errors import TextMatchError, reason_name
from textmatch.queue.dead_letters import of_document
from textmatch.v1 import error_reason_pb2
from workers import metrics
from workers.indexing import Dependencies, Result, index_documents

_log = logging.getLogger(__name__)

_OPERATOR_ERRORS = (
    errors.ModelMismatch,
    errors.ModelNotFound,
    errors.Unauthenticated,
    errors.PermissionDenied,
)
_INTERNAL = reason_name(error_reason_pb2.ERROR_REASON_INTERNAL)
_BATCH_TRIES = 3
_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 15.0


class PatienceLost(Exception):
    """Not everything is settled; the message is better put back into the queue."""


@dataclass(frozen=True)
class Batch:
    """Documents of one message; `accepted_at` in seconds since 1970, `give_up_at` on the monotonic clock."""

    documents: tuple[Document, ...]
    accepted_at: float
    give_up_at: float


class PersistentIndexer:
    """Runs `index_documents` until it succeeds, the patience ends, or the process stops."""

    def __init__(self, deps: Dependencies, patience_seconds: float) -> None:
        self._deps = deps
        self._patience_seconds = patience_seconds
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """From now on, give up instead of waiting."""
        self._stopping.set()

    async def settle(self, documents: tuple[Document, ...], accepted_at: float) -> None:
        """Settle every document.

        Raises:
            PatienceLost: some are not settled.
        """
        give_up_at = time.monotonic() + self._patience_seconds
        await self._settle(Batch(documents, accepted_at, give_up_at), tries=_BATCH_TRIES)

    async def _settle(self, batch: Batch, tries: int) -> None:
        bugs = 0
        for attempt in itertools.count():
            try:
                results = await index_documents(batch.documents, self._deps)
            except Exception as error:  # noqa: BLE001 -- nothing that goes wrong may lose a document
                if not _may_pass(error):
                    bugs += 1
                if bugs == tries:
                    await self._isolate(batch, error)
                    return
                await self._wait(batch, error, attempt)
            else:
                _report(results, batch.accepted_at)
                return

    async def _isolate(self, batch: Batch, error: Exception) -> None:
        """Find the documents that set off a bug."""
        if len(batch.documents) == 1:
            await self._bury(batch.documents[0], error)
            return
        middle = len(batch.documents) // 2
        for half in (batch.documents[:middle], batch.documents[middle:]):
            await self._settle(replace(batch, documents=half), tries=1)

    async def _bury(self, document: Document, error: Exception) -> None:
        _log.error("document failed", extra={"document_id": document.id}, exc_info=error)
        letter = of_document(document, _reason(error), f"{type(error).__name__}: {error}")
        await self._deps.dead_letters.add([letter])
        await self._deps.pending.clear({document.id: document.version})
        metrics.DOCUMENTS_TOTAL.labels(Result.FAILED.value).inc()

    async def _wait(self, batch: Batch, error: Exception, attempt: int) -> None:
        """Wait before the next try.

        Raises:
            PatienceLost: the time for this batch is over, or the process stops.
        """
        delay_seconds = _delay_seconds(error, attempt)
        reason = _reason(error)
        metrics.RETRIES_TOTAL.labels(reason).inc()
        needs_operator = isinstance(error, _OPERATOR_ERRORS)
        if needs_operator:
            metrics.OPERATOR_NEEDED.labels(reason).set(1)
        _log.log(
            logging.ERROR if needs_operator else logging.WARNING,
            "batch will be tried again",
            extra={"reason": reason, "error": str(error), "delay_seconds": round(delay_seconds, 3)},
        )
        try:
            async with asyncio.timeout(delay_seconds):
                await self._stopping.wait()
        except TimeoutError:
            if time.monotonic() < batch.give_up_at:
                return
        raise PatienceLost(f"not settled: {error}") from error


def _may_pass(error: Exception) -> bool:
    """Whether the same batch may succeed later, so that no document in it is at fault."""
    return isinstance(error, _OPERATOR_ERRORS) or (isinstance(error, TextMatchError) and error.is_transient)


def _reason(error: Exception) -> str:
    return reason_name(error.reason) if isinstance(error, TextMatchError) else _INTERNAL


def _delay_seconds(error: Exception, attempt: int) -> float:
    """What the server asked for, and exponential backoff on top of it so that workers spread out."""
    asked = (error.retry_delay_seconds or 0.0) if isinstance(error, TextMatchError) else 0.0
    backoff = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(attempt, 16))
    return asked + backoff * random.uniform(0.5, 1.0)  # noqa: S311 -- no secret


def _report(results: list[Result], accepted_at: float) -> None:
    metrics.OPERATOR_NEEDED.clear()
    counts = Counter(results)
    for result, count in counts.items():
        metrics.DOCUMENTS_TOTAL.labels(result.value).inc(count)
    age_seconds = max(0.0, time.time() - accepted_at)
    for _ in range(counts[Result.INDEXED] + counts[Result.UNCHANGED_TEXT]):
        metrics.ACCEPT_TO_SEARCHABLE_SECONDS.observe(age_seconds)
