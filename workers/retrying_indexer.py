"""Trying a batch until every document in it is settled, whatever fails.

* What may pass (the encoder is overloaded, Qdrant does not answer) is waited out, without a limit on the
  number of tries and with no mark against the documents: exponential backoff with jitter, and never sooner
  than the server that refused has asked for.
* What only an operator can end (the index was built by another model, a key is missing) is waited out too,
  and reported as an error and in a gauge.
* Anything else is a bug, perhaps one that a single document sets off. After a few tries the batch is halved,
  and so on, until the documents that fail alone go to the dead letters and all others are indexed.
* An encoder that goes away with a batch may have died of one of its texts. Such a batch is tried once more,
and then halved as above, however long the encoder needs to come back each time; a text goes to the dead
letters when the encoder has gone away several times while it worked on this text alone. An encoder that
cannot be reached, refuses or is too slow is never counted.

Waiting happens here, in the worker, with the message held by its lease: a worker that can do nothing should
not take more messages. But after `patience_seconds` the message goes to the end of the queue, so that one
batch that cannot be encoded does not stand in the way of all others.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from textmatch import errors
from textmatch.documents import Document
from textmatch.errors import TextMatchError, reason_name
from textmatch.queue.dead_letters import DeadLetter, of_document
from textmatch.v1 import error_reason_pb2
from workers import metrics
from workers.encoder import EncoderCrashed
from workers.indexer import Dependencies, Result, index_documents

_log = logging.getLogger(__name__)

_OPERATOR_ERRORS = (
    errors.ModelMismatch,
    errors.ModelNotFound,
    errors.Unauthenticated,
    errors.PermissionDenied,
)
_TEXT_FAILED = reason_name(error_reason_pb2.ERROR_REASON_TEXT_FAILED)
_INTERNAL = reason_name(error_reason_pb2.ERROR_REASON_INTERNAL)
_BUG_TRIES = 3
_CRASH_TRIES = 2
# Alone: an encoder may also be killed while it works on a text by chance.
_CRASH_TRIES_ALONE = 3
_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 15.0


class RetryBudgetExhausted(Exception):
    """Not everything is settled; the message is better put back into the queue."""


@dataclass(frozen=True)
class AcceptedDocument:
    """`accepted_at` in seconds since 1970."""

    document: Document
    accepted_at: float


@dataclass(frozen=True)
class Batch:
    """Documents that are tried together.

    Args:
        is_part: of a batch that failed, looking for who is at fault.
        give_up_at: on the monotonic clock.
    """

    documents: tuple[AcceptedDocument, ...]
    is_part: bool
    give_up_at: float

    def max_faults(self, error: Exception) -> int:
        """How often it may fail like this before it is halved or, a single document, buried."""
        if isinstance(error, EncoderCrashed) and len(self.documents) == 1:
            return _CRASH_TRIES_ALONE
        if self.is_part:
            return 1
        return _CRASH_TRIES if isinstance(error, EncoderCrashed) else _BUG_TRIES


class RetryingIndexer:
    """Runs `index_documents` until it succeeds, the patience ends, or the process stops."""

    def __init__(self, deps: Dependencies, patience_seconds: float) -> None:
        self._deps = deps
        self._patience_seconds = patience_seconds
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """From now on, give up instead of waiting."""
        self._stopping.set()

    async def settle(self, documents: Sequence[AcceptedDocument]) -> None:
        """Settle every document.

        Raises:
            PatienceLost: some are not settled.
        """
        give_up_at = time.monotonic() + self._patience_seconds
        await self._settle(Batch(tuple(documents), is_part=False, give_up_at=give_up_at))

    async def _settle(self, batch: Batch) -> None:
        faults = 0
        for attempt in itertools.count():
            try:
                results = await index_documents([one.document for one in batch.documents], self._deps)
            except Exception as error:  # noqa: BLE001 -- nothing that goes wrong may lose a document
                if isinstance(error, EncoderCrashed):
                    # In the queue it would kill again, and again as if for the first time.
                    batch = replace(batch, give_up_at=math.inf)
                if _may_be_a_documents_fault(error):
                    faults += 1
                    if faults >= batch.max_faults(error):
                        await self._isolate(batch, error)
                        return
                await self._wait(batch, error, attempt)
            else:
                _report(results, batch)
                return

    async def _isolate(self, batch: Batch, error: Exception) -> None:
        """Find the documents that set off a bug."""
        if len(batch.documents) == 1:
            await self._bury(batch.documents[0].document, error)
            return
        middle = len(batch.documents) // 2
        for half in (batch.documents[:middle], batch.documents[middle:]):
            await self._settle(replace(batch, documents=half, is_part=True))

    async def _bury(self, document: Document, error: Exception) -> None:
        _log.error("document failed", extra={"document_id": document.id}, exc_info=error)
        await self._deps.dead_letters.add([_letter(document, error)])
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
        raise RetryBudgetExhausted(f"not settled: {error}") from error


def _may_be_a_documents_fault(error: Exception) -> bool:
    """Unless the same batch may succeed later just as it is."""
    if isinstance(error, EncoderCrashed):
        return True
    if isinstance(error, _OPERATOR_ERRORS):
        return False
    return not (isinstance(error, TextMatchError) and error.is_transient)


def _letter(document: Document, error: Exception) -> DeadLetter:
    if isinstance(error, EncoderCrashed):
        times = f"the encoder went away {_CRASH_TRIES_ALONE} times while it worked on this text alone"
        return of_document(document, _TEXT_FAILED, times)
    return of_document(document, _reason(error), f"{type(error).__name__}: {error}")


def _reason(error: Exception) -> str:
    return reason_name(error.reason) if isinstance(error, TextMatchError) else _INTERNAL


def _delay_seconds(error: Exception, attempt: int) -> float:
    """What the server asked for, and exponential backoff on top of it so that workers spread out."""
    asked = (error.retry_delay_seconds or 0.0) if isinstance(error, TextMatchError) else 0.0
    backoff = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(attempt, 16))
    return asked + backoff * random.uniform(0.5, 1.0)  # noqa: S311 -- no secret


def _report(results: list[Result], batch: Batch) -> None:
    metrics.OPERATOR_NEEDED.clear()
    for result, count in Counter(results).items():
        metrics.DOCUMENTS_TOTAL.labels(result.value).inc(count)
    now = time.time()
    for one, result in zip(batch.documents, results, strict=True):
        if result in {Result.INDEXED, Result.UNCHANGED_TEXT}:
            metrics.ACCEPT_TO_SEARCHABLE_SECONDS.observe(max(0.0, now - one.accepted_at))
