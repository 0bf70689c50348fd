"""Retry a batch until every document in it is settled.

* A transient error (the encoder is overloaded, Qdrant does not answer) is retried without limit and never
  counts against a document. The delay is the one that the server requests, plus exponential backoff with
  jitter.
* An error that only an operator can fix (the index was built by another model, a key is missing) is retried
  too, logged as an error and shown in a gauge.
* A write that some shards lack replicas for is tried again in halves, quarters and so on, once each. The
  documents of complete shards are settled, the others wait. No document is blamed.
* A deleted collection settles its documents: they are dropped.
* Any other error is a bug, perhaps caused by one document. After a few attempts the batch is split in half,
  and so on, until the documents that fail alone are in the dead letters and all others are indexed.
* An encoder that disconnects during a call may have been crashed by a text in the batch. The batch is tried
  once more and then split as above, however long the encoder takes to restart. A text goes to the dead
  letters once the encoder has disconnected several times while it processed that text alone. An encoder that
  cannot be reached, refuses or is too slow does not count.

The worker waits between attempts and keeps the lease of the message, because a worker that cannot index must
not take more messages. After `budget_seconds` the message goes back to the end of the queue: one batch that
cannot be encoded must not block all others.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from textmatch import errors
from textmatch.collection_store import Collection
from textmatch.documents import Document
from textmatch.encoder_client import EncoderCrashed
from textmatch.errors import CollectionNotFound, TextMatchError, reason_name
from textmatch.index.client import ReplicasMissing
from textmatch.queue.dead_letters import of_document
from textmatch.retry import delay_seconds
from textmatch.v1 import error_reason_pb2
from workers import metrics
from workers.indexer import DocumentOutcome, IndexerDependencies, index_documents

_log = logging.getLogger(__name__)

OPERATOR_ERRORS = (
    errors.ModelMismatch,
    errors.ModelNotFound,
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.CollectionNotOwned,
)
_TEXT_FAILED = reason_name(error_reason_pb2.ERROR_REASON_TEXT_FAILED)
_INTERNAL = reason_name(error_reason_pb2.ERROR_REASON_INTERNAL)
_BUG_TRIES = 3
_CRASH_TRIES = 2
# More for a text alone, because an encoder may also be killed by chance while it processes the text.
_CRASH_TRIES_ALONE = 3


class RetryBudgetExhausted(Exception):
    """Not every document is settled; the message must go back to the queue."""


@dataclass(frozen=True)
class AcceptedDocument:
    """`accepted_at` in seconds since 1970."""

    document: Document
    accepted_at: float


@dataclass(frozen=True)
class RetriedBatch:
    """Documents of one collection that are tried together.

    Args:
        is_split: part of a batch that failed, split to find the document that causes the error.
        give_up_at: on the monotonic clock.
    """

    deps: IndexerDependencies
    documents: tuple[AcceptedDocument, ...]
    is_split: bool
    give_up_at: float

    def max_faults(self, error: Exception) -> int:
        """How often it may fail with such errors before it is split, or a single document dead-lettered."""
        if isinstance(error, EncoderCrashed) and len(self.documents) == 1:
            return _CRASH_TRIES_ALONE
        if self.is_split:
            return 1
        return _CRASH_TRIES if isinstance(error, EncoderCrashed) else _BUG_TRIES


class RetryingIndexer:
    """Runs `index_documents` until it succeeds, the retry budget is used up, or the process stops."""

    def __init__(self, budget_seconds: float) -> None:
        self._budget_seconds = budget_seconds
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Raise RetryBudgetExhausted from now on instead of waiting."""
        self._stopping.set()

    async def settle(self, documents: Sequence[AcceptedDocument], deps: IndexerDependencies) -> None:
        """Settle every document of a batch.

        Args:
            deps: those of the collection of the documents.

        Raises:
            RetryBudgetExhausted: some are not settled.
        """
        give_up_at = time.monotonic() + self._budget_seconds
        await self._settle(RetriedBatch(deps, tuple(documents), is_split=False, give_up_at=give_up_at))

    async def _settle(self, batch: RetriedBatch) -> None:
        faults = 0
        for attempt in itertools.count():
            try:
                outcomes = await index_documents([one.document for one in batch.documents], batch.deps)
            except CollectionNotFound:
                _report([DocumentOutcome.DROPPED] * len(batch.documents), batch)
                return
            except Exception as error:  # noqa: BLE001 -- no error may lose a document
                if isinstance(error, EncoderCrashed):
                    # In the queue again, its count would start at zero, and it would crash more encoders.
                    batch = replace(batch, give_up_at=math.inf)
                if _may_be_a_documents_fault(error):
                    faults += 1
                    if faults >= batch.max_faults(error):
                        await self._isolate(batch, error)
                        return
                if isinstance(error, ReplicasMissing):
                    batch = replace(batch, documents=await self._settle_parts(batch))
                    if not batch.documents:
                        return
                await self._wait(batch, error, attempt)
            else:
                _report(outcomes, batch)
                return

    async def _settle_parts(self, batch: RetriedBatch) -> tuple[AcceptedDocument, ...]:
        """Settle the documents of shards that have enough replicas; returns the others."""
        if len(batch.documents) == 1 or self._stopping.is_set():
            return batch.documents
        held_up: tuple[AcceptedDocument, ...] = ()
        for documents in _halves(batch.documents):
            half = replace(batch, documents=documents)
            try:
                outcomes = await index_documents([one.document for one in documents], batch.deps)
            except ReplicasMissing:
                held_up += await self._settle_parts(half)
            except Exception:  # noqa: BLE001 -- the next try of the batch meets it again
                held_up += documents
            else:
                _report(outcomes, half)
        return held_up

    async def _isolate(self, batch: RetriedBatch, error: Exception) -> None:
        """Find the documents that cause the error."""
        if len(batch.documents) == 1:
            await self._dead_letter(batch.documents[0].document, error, batch.deps.collection)
            return
        for documents in _halves(batch.documents):
            await self._settle(replace(batch, documents=documents, is_split=True))

    async def _dead_letter(self, document: Document, error: Exception, collection: Collection) -> None:
        _log.error("document failed", extra={"document_id": document.id}, exc_info=error)
        reason, description = _reason(error), f"{type(error).__name__}: {error}"
        if isinstance(error, EncoderCrashed):
            reason = _TEXT_FAILED
            description = (
                f"the encoder disconnected {_CRASH_TRIES_ALONE} times while it processed this text alone"
            )
        await collection.dead_letters.add([of_document(document, reason, description)])
        await collection.pending.clear({document.id: document.version})
        metrics.DOCUMENTS_TOTAL.labels(DocumentOutcome.FAILED.value).inc()

    async def _wait(self, batch: RetriedBatch, error: Exception, attempt: int) -> None:
        """Wait before the next attempt.

        Raises:
            RetryBudgetExhausted: the time for this batch is over, or the process stops.
        """
        seconds = delay_seconds(error, attempt)
        reason = _reason(error)
        metrics.RETRIES_TOTAL.labels(reason).inc()
        needs_operator = isinstance(error, OPERATOR_ERRORS)
        if needs_operator:
            metrics.OPERATOR_NEEDED.labels(batch.deps.collection.name, reason).set(1)
        _log.log(
            logging.ERROR if needs_operator else logging.WARNING,
            "batch will be retried",
            extra={"reason": reason, "error": str(error), "delay_seconds": round(seconds, 3)},
        )
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            if time.monotonic() < batch.give_up_at:
                return
        raise RetryBudgetExhausted(f"not settled: {error}") from error


def _halves(documents: tuple[AcceptedDocument, ...]) -> tuple[tuple[AcceptedDocument, ...], ...]:
    middle = len(documents) // 2
    return documents[:middle], documents[middle:]


def _may_be_a_documents_fault(error: Exception) -> bool:
    """Whether a document may cause the error. Other errors are retried without limit."""
    if isinstance(error, EncoderCrashed):
        return True
    if isinstance(error, OPERATOR_ERRORS):
        return False
    return not (isinstance(error, TextMatchError) and error.is_transient)


def _reason(error: Exception) -> str:
    return reason_name(error.reason) if isinstance(error, TextMatchError) else _INTERNAL


def _report(outcomes: list[DocumentOutcome], batch: RetriedBatch) -> None:
    metrics.OPERATOR_NEEDED.remove_by_labels({"collection": batch.deps.collection.name})
    for outcome, count in Counter(outcomes).items():
        metrics.DOCUMENTS_TOTAL.labels(outcome.value).inc(count)
    now = time.time()
    for one, outcome in zip(batch.documents, outcomes, strict=True):
        if outcome in {DocumentOutcome.INDEXED, DocumentOutcome.UNCHANGED_TEXT}:
            metrics.ACCEPT_TO_SEARCHABLE_SECONDS.observe(max(0.0, now - one.accepted_at))
