"""Retry a batch until every document in it is settled.

* A transient error (the encoder is overloaded, Qdrant does not answer) is retried without limit and never
  counts against a document. The delay is the one that the server requests, plus exponential backoff with
  jitter.
* An error that only an operator can end (a refused key, a full disk, no encoder serves the model) pauses the
  collection (workers/pauses.py) and never counts against a document.
* A batch that is too large (the encoder does not embed it in time, Qdrant limits the size of a request) is
  split in half. Later batches of the collection start at the size that worked. No document is blamed.
* A write that some shards lack replicas for is tried again in halves, quarters and so on, once each. The
  documents of complete shards are settled, the others wait. No document is blamed.
* A deleted collection settles its documents: they are dropped.
* Any other error is a bug, or the fault of one document. After a few attempts the batch is split in half, and
  so on. A document that fails alone goes to the dead letters only with evidence that it is the cause: other
  documents of the collection are written between two of its failures, or, if the encoder fails, a probe text
  is embedded before and after. Without evidence the error waits for an operator, like a refused key.
* An encoder that disconnects during a call may have been crashed by a text in the batch. It counts only if
  probe texts are embedded before and after, so an unreliable proxy in between is never held against a text.
  The batch is tried once more and then split as above, however long the encoder takes to restart. A text goes
  to the dead letters once the encoder has disconnected several times while it processed that text alone.

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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from textmatch import errors
from textmatch.collection_store import Collection
from textmatch.documents import Document
from textmatch.encoder_client import EncoderCrashed
from textmatch.errors import CollectionNotFound, TextMatchError, reason_name
from textmatch.index.qdrant_errors import ReplicasMissing, RequestTooLarge
from textmatch.queue.dead_letters import of_document
from textmatch.retry import delay_seconds, is_transient
from textmatch.v1 import error_reason_pb2
from workers import metrics
from workers.indexer import DocumentOutcome, IndexerDependencies, index_documents, probe_encoder
from workers.pauses import OperatorAwaited, Pauses, RetryBudgetExhausted, reason_of

_log = logging.getLogger(__name__)

OPERATOR_ERRORS = (
    errors.ModelMismatch,
    errors.ModelNotFound,
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.CollectionNotOwned,
    errors.StoreRefuses,
)
# The encoder has not embedded a batch in time.
_LATE_ERRORS = (errors.DeadlinePassed, errors.DeadlineTooShort)
_TEXT_FAILED = reason_name(error_reason_pb2.ERROR_REASON_TEXT_FAILED)
_BUG_TRIES = 3
# Crashes with probe texts embedded before and after. The first crash of a batch has no probe before it.
_CRASH_TRIES = 1
# More for a text alone, because an encoder may also be killed by chance while it processes the text.
_CRASH_TRIES_ALONE = 3
# An unreliable proxy lets some calls through.
_PROBES = 3
# Twice the size is tried after so many batches if Qdrant limits it, or after a batch that took less than this
# share of the encoder's time limit.
_BATCHES_BEFORE_GROWTH = 16
_QUICK_SHARE = 0.25
_SUSPECTS = 10_000


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
        is_probed: since the last failure, the encoder has embedded all probe texts.
        faults: failures that a document may have caused.
    """

    deps: IndexerDependencies
    documents: tuple[AcceptedDocument, ...]
    is_split: bool
    give_up_at: float
    is_probed: bool = False
    faults: int = 0

    def max_faults(self, error: Exception) -> int:
        """How often it may fail with such errors before it is split, or a single document is suspected."""
        if isinstance(error, EncoderCrashed):
            return _CRASH_TRIES_ALONE if len(self.documents) == 1 else _CRASH_TRIES
        return 1 if self.is_split else _BUG_TRIES

    def halves(self) -> tuple[RetriedBatch, RetriedBatch]:
        """The first and the second half."""
        middle = len(self.documents) // 2
        first, second = self.documents[:middle], self.documents[middle:]
        return replace(self, documents=first, faults=0), replace(self, documents=second, faults=0)


@dataclass
class Findings:
    """How many documents of a batch were written, and those that failed alone, with their errors."""

    written: int = 0
    suspects: list[tuple[AcceptedDocument, Exception]] = field(default_factory=list)

    def add(self, more: Findings) -> None:
        """Add those of another part of the batch."""
        self.written += more.written
        self.suspects += more.suspects


class BatchSizes:
    """The largest batch of a collection that works; unlimited until a batch was too large."""

    def __init__(self) -> None:
        self._largest: float = math.inf
        self._is_limited_by_store = False
        self._successes = 0

    def split(self, batch: RetriedBatch) -> Iterator[RetriedBatch]:
        """The parts in which a batch is tried."""
        size = int(min(self._largest, len(batch.documents)))
        for start in range(0, len(batch.documents), size):
            yield replace(batch, documents=batch.documents[start : start + size])

    def too_large(self, size: int, error: Exception) -> None:
        """A batch of this size was too large."""
        self._largest = max(1, min(size // 2, self._largest))
        self._is_limited_by_store = isinstance(error, RequestTooLarge)
        self._successes = 0

    def worked(self, size: int, time_share: float) -> None:
        """A batch of this size was not too large; it took this share of the encoder's time limit."""
        if size < self._largest:
            return
        self._successes += 1
        enough = _BATCHES_BEFORE_GROWTH if self._is_limited_by_store else 1
        if self._successes >= enough and time_share < _QUICK_SHARE:
            self._largest *= 2
            self._successes = 0

    def forget(self) -> None:
        """The size was not the reason."""
        self._largest = math.inf


class RetryingIndexer:
    """Runs `index_documents` until it succeeds, the retry budget is used up, or the process stops.

    Args:
        on_attempt: called before each attempt.
    """

    def __init__(
        self,
        budget_seconds: float,
        pauses: Pauses | None = None,
        on_attempt: Callable[[], None] = lambda: None,
    ) -> None:
        self._budget_seconds = budget_seconds
        self._on_attempt = on_attempt
        self.pauses = pauses or Pauses()
        self._sizes: defaultdict[str, BatchSizes] = defaultdict(BatchSizes)
        self._stopping = asyncio.Event()
        # When a document was last written, by collection; when a document first failed alone, by collection,
        # id and version. On the monotonic clock.
        self._written_at: dict[str, float] = {}
        self._suspected_at: dict[tuple[str, str, int], float] = {}

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
        batch = RetriedBatch(deps, tuple(documents), is_split=False, give_up_at=give_up_at)
        with self.pauses.attempt(deps.collection.name):
            findings = Findings()
            for part in self._sizes[deps.collection.name].split(batch):
                findings.add(await self._settle(part))
            await self._judge(findings, batch)

    async def _settle(self, batch: RetriedBatch) -> Findings:
        for attempt in itertools.count():
            started = time.monotonic()
            self._on_attempt()
            try:
                outcomes = await index_documents([one.document for one in batch.documents], batch.deps)
            except CollectionNotFound:
                _report([DocumentOutcome.DROPPED] * len(batch.documents), batch)
                return Findings()
            except Exception as error:  # noqa: BLE001 -- no error may lose a document
                if await self._is_too_large(batch, error):
                    return await self._settle_halves(batch, error)
                if isinstance(error, ReplicasMissing):
                    batch = replace(batch, documents=await self._settle_complete_shards(batch))
                    if not batch.documents:
                        return Findings()
                batch = await self._considered(batch, error)
                if batch.faults >= batch.max_faults(error):
                    return await self._isolate(batch, error)
                await self._wait(batch, error, attempt)
            else:
                return self._done(batch, outcomes, time.monotonic() - started)
        raise AssertionError("attempts do not end")

    async def _settle_complete_shards(self, batch: RetriedBatch) -> tuple[AcceptedDocument, ...]:
        """Settle the documents of shards that have enough replicas; returns the others."""
        if len(batch.documents) == 1 or self._stopping.is_set():
            return batch.documents
        held_up: tuple[AcceptedDocument, ...] = ()
        for half in batch.halves():
            self._on_attempt()
            try:
                outcomes = await index_documents([one.document for one in half.documents], half.deps)
            except ReplicasMissing:
                held_up += await self._settle_complete_shards(half)
            except Exception:  # noqa: BLE001 -- the next try of the batch meets it again
                held_up += half.documents
            else:
                self._done(half, outcomes, 0.0)
        return held_up

    async def _considered(self, batch: RetriedBatch, error: Exception) -> RetriedBatch:
        """The batch after a failure, with one more fault if a document may be the cause.

        Raises:
            OperatorAwaited: only an operator can end the error.
        """
        if isinstance(error, OPERATOR_ERRORS):
            if isinstance(error, RequestTooLarge):
                self._sizes[batch.deps.collection.name].forget()
            raise OperatorAwaited(error) from error
        if isinstance(error, EncoderCrashed):
            return await self._after_crash(batch)
        return replace(batch, is_probed=False, faults=batch.faults + (not is_transient(error)))

    def _done(self, batch: RetriedBatch, outcomes: list[DocumentOutcome], seconds: float) -> Findings:
        _report(outcomes, batch)
        collection = batch.deps.collection.name
        time_share = seconds / batch.deps.encode_timeout_seconds
        self._sizes[collection].worked(len(batch.documents), time_share)
        written = _written(outcomes)
        if written:
            self._written_at[collection] = time.monotonic()
        return Findings(written)

    async def _is_too_large(self, batch: RetriedBatch, error: Exception) -> bool:
        """Whether a smaller batch may succeed. An encoder that embeds no single text in time is not busy."""
        if len(batch.documents) == 1:
            return False
        if isinstance(error, _LATE_ERRORS):
            return await self._is_encoder_well(batch.deps, probes=1)
        return isinstance(error, RequestTooLarge)

    async def _settle_halves(self, batch: RetriedBatch, error: Exception) -> Findings:
        self._count(error)
        _log.warning("batch halved", extra={"documents": len(batch.documents), "error": str(error)})
        self._sizes[batch.deps.collection.name].too_large(len(batch.documents), error)
        findings = Findings()
        for half in batch.halves():
            # The first half may have shown that smaller parts are needed.
            for part in self._sizes[batch.deps.collection.name].split(half):
                findings.add(await self._settle(part))
        return findings

    async def _isolate(self, batch: RetriedBatch, error: Exception) -> Findings:
        """Find the documents that fail alone."""
        if len(batch.documents) == 1:
            self._suspect(_key(batch.documents[0], batch.deps))
            return Findings(suspects=[(batch.documents[0], error)])
        findings = Findings()
        for half in batch.halves():
            findings.add(await self._settle(replace(half, is_split=True)))
        return findings

    def _suspect(self, key: tuple[str, str, int]) -> None:
        """Remember when a document first failed alone; the oldest are forgotten."""
        self._suspected_at.setdefault(key, time.monotonic())
        if len(self._suspected_at) > _SUSPECTS:
            del self._suspected_at[next(iter(self._suspected_at))]

    async def _judge(self, findings: Findings, batch: RetriedBatch) -> None:
        """Move documents to the dead letters that are shown to be the cause of their error.

        Raises:
            OperatorAwaited: the cause of an error is not known.
        """
        suspects = [suspect for suspect, _ in findings.suspects]
        others = tuple(one for one in batch.documents if one not in suspects)
        unexplained: Exception | None = None
        for suspect, error in findings.suspects:
            # Crashes were counted with probes.
            if not isinstance(error, EncoderCrashed):
                if not await self._do_others_succeed(suspect, error, replace(batch, documents=others)):
                    unexplained = error
                    continue
                if not await self._fails_again(replace(batch, documents=(suspect,))):
                    continue
            await self._dead_letter(suspect.document, error, batch.deps.collection)
        if unexplained:
            raise OperatorAwaited(unexplained) from unexplained

    async def _do_others_succeed(
        self, suspect: AcceptedDocument, error: Exception, others: RetriedBatch
    ) -> bool:
        """Whether what fails with this document has succeeded without it after the document failed."""
        if isinstance(error, errors.InternalError) and await self._is_encoder_well(others.deps):
            return True
        name = others.deps.collection.name
        suspected_at = self._suspected_at.get(_key(suspect, others.deps), math.inf)
        if self._written_at.get(name, -math.inf) > suspected_at:
            return True
        if not others.documents:
            return False
        try:
            outcomes = await index_documents([one.document for one in others.documents], others.deps)
        except Exception as failure:  # noqa: BLE001 -- then the document is not the cause
            _log.warning("a batch fails without the suspected document", extra={"error": str(failure)})
            return False
        return _written(outcomes) > 0

    async def _fails_again(self, batch: RetriedBatch) -> bool:
        """Whether one document fails once more, by its own fault.

        Raises:
            RetryBudgetExhausted: something else prevents the attempt.
        """
        try:
            outcomes = await index_documents([one.document for one in batch.documents], batch.deps)
        except Exception as error:
            if is_transient(error) or isinstance(error, OPERATOR_ERRORS):
                raise RetryBudgetExhausted(f"not settled: {error}") from error
            return True
        self._done(batch, outcomes, 0.0)
        return False

    async def _after_crash(self, batch: RetriedBatch) -> RetriedBatch:
        """Wait until the encoder works, and count the crash if it always works without this batch.

        A probe that fails shows that the route to the encoder is unreliable. Then no crash counts.

        Raises:
            RetryBudgetExhausted: the process stops.
            OperatorAwaited: only an operator can make it work.
        """
        # In the queue again, its count would start at zero, and it would crash more encoders.
        batch = replace(batch, give_up_at=math.inf, faults=batch.faults + batch.is_probed)
        for attempt in itertools.count():
            self._on_attempt()
            try:
                await probe_encoder(batch.deps)
            except CollectionNotFound:
                return batch
            except TextMatchError as error:
                if isinstance(error, OPERATOR_ERRORS):
                    raise OperatorAwaited(error) from error
                await self._wait(batch, error, attempt)
            else:
                break
        if await self._is_encoder_well(batch.deps):
            return replace(batch, is_probed=True)
        return replace(batch, is_probed=False, faults=0)

    async def _is_encoder_well(self, deps: IndexerDependencies, probes: int = _PROBES) -> bool:
        try:
            for _ in range(probes):
                await probe_encoder(deps)
        except TextMatchError:
            return False
        return True

    async def _dead_letter(self, document: Document, error: Exception, collection: Collection) -> None:
        _log.error("document failed", extra={"document_id": document.id}, exc_info=error)
        reason, description = reason_of(error), f"{type(error).__name__}: {error}"
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
        self._count(error)
        _log.warning(
            "batch will be retried",
            extra={"reason": reason_of(error), "error": str(error), "delay_seconds": round(seconds, 3)},
        )
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            if time.monotonic() < batch.give_up_at:
                return
        raise RetryBudgetExhausted(f"not settled: {error}") from error

    def _count(self, error: Exception) -> None:
        metrics.RETRIES_TOTAL.labels(reason_of(error)).inc()


def _key(document: AcceptedDocument, deps: IndexerDependencies) -> tuple[str, str, int]:
    return deps.collection.name, document.document.id, document.document.version


def _written(outcomes: Sequence[DocumentOutcome]) -> int:
    return sum(one in {DocumentOutcome.INDEXED, DocumentOutcome.UNCHANGED_TEXT} for one in outcomes)


def _report(outcomes: list[DocumentOutcome], batch: RetriedBatch) -> None:
    for outcome, count in Counter(outcomes).items():
        metrics.DOCUMENTS_TOTAL.labels(outcome.value).inc(count)
    now = time.time()
    for one, outcome in zip(batch.documents, outcomes, strict=True):
        if outcome in {DocumentOutcome.INDEXED, DocumentOutcome.UNCHANGED_TEXT}:
            metrics.ACCEPT_TO_SEARCHABLE_SECONDS.observe(max(0.0, now - one.accepted_at))
