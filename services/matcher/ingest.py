"""Taking documents in: each is checked, given a version, and queued unless it is stored already.

Back-pressure: while the queue is full, callers of IngestDocuments are held instead of Redis being filled.

A request that is held keeps its stream from being read, so that gRPC's flow control slows its caller down.
Callers are let in one after another, first come first served. All matchers look at the same queue, and each
adds what it is just putting there, so that the limit is passed by at most one request of each matcher.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from services.matcher import metrics
from textmatch.documents import (
    Document,
    check_item_count,
    content_hash,
    document_violations,
    version_now,
    version_violation,
)
from textmatch.errors import InvalidInput, Overloaded, TextMatchError
from textmatch.index.index import Index
from textmatch.index.schema import StoredDocument
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.depth import DepthSample, QueueDepth
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer
from textmatch.queue.tombstones import Tombstones
from textmatch.runtime.grpc_errors import to_status
from textmatch.runtime.tracing import current_traceparent
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import from_proto

_PAUSE_SECONDS = 0.1
_RETRY_SECONDS = 2.0
# How long before its own deadline a held caller is told: this, or this share of its time if that is less.
_MARGIN_SECONDS = 1.0
_MARGIN_SHARE = 0.25


@dataclass(frozen=True)
class QueueLimits:
    """From which size on the queue counts as full."""

    documents: int
    size_bytes: int


class Admission:
    """Who may put documents into the queue now."""

    def __init__(self, backlog: QueueDepth, limits: QueueLimits) -> None:
        self._backlog = backlog
        self._limits = limits
        self._turn = asyncio.Lock()
        self._entering_documents = 0
        self._entering_bytes = 0

    @asynccontextmanager
    async def entry(self, documents: Sequence[Document], deadline: float | None) -> AsyncIterator[None]:
        """Wait until there is room; in the block, put these documents into the queue.

        Args:
            deadline: of the caller, on the monotonic clock; None if it has none.

        Raises:
            Overloaded: there is none in time.
            DependencyUnavailable: Redis does not answer.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout_at(_last_moment(deadline)), self._turn:
                await self._room()
                size_bytes = sum(len(document.text.encode()) for document in documents)
                self._entering_documents += len(documents)
                self._entering_bytes += size_bytes
        except TimeoutError:
            raise self._full() from None
        finally:
            _report(time.monotonic() - started)
        try:
            yield
        finally:
            self._entering_documents -= len(documents)
            self._entering_bytes -= size_bytes

    async def _room(self) -> None:
        while not self._fits(await self._backlog.measure()):  # noqa: ASYNC110 -- Redis tells nobody
            await asyncio.sleep(_PAUSE_SECONDS)

    def _fits(self, waiting: DepthSample) -> bool:
        return (
            waiting.documents + self._entering_documents < self._limits.documents
            and waiting.size_bytes + self._entering_bytes < self._limits.size_bytes
        )

    def _full(self) -> Overloaded:
        limits = f"{self._limits.documents:,} documents or {self._limits.size_bytes:,} bytes"
        return Overloaded(f"the ingest queue is full, it holds {limits}", retry_delay_seconds=_RETRY_SECONDS)


def _report(held_seconds: float) -> None:
    if held_seconds >= _PAUSE_SECONDS:
        metrics.INGEST_HELD_SECONDS.observe(held_seconds)


def _last_moment(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    remaining_seconds = max(0.0, deadline - time.monotonic())
    return deadline - min(_MARGIN_SECONDS, _MARGIN_SHARE * remaining_seconds)


_log = logging.getLogger(__name__)

MAX_DOCUMENTS = 1_000


@dataclass(frozen=True)
class IngestDependencies:
    """What Redis holds of documents on their way, and for how long deletes are remembered."""

    producer: Producer
    pending: Pending
    tombstones: Tombstones
    dead_letters: DeadLetters
    admission: Admission
    tombstone_seconds: int


class VersionClock:
    """Versions for what comes without one: the time in microseconds, and never the same or less again."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """A version above all that were given before."""
        self._last = max(version_now(), self._last + 1)
        return self._last

    def stamp(self, documents: Mapping[int, Document]) -> dict[int, Document]:
        """Set missing versions: one for all, but of an id that is repeated, the later document wins."""
        base = self.next()
        repeats: Counter[str] = Counter()
        stamped = {}
        for position, document in documents.items():
            if not document.version:
                document = replace(document, version=base + repeats[document.id])
                repeats[document.id] += 1
                self._last = max(self._last, document.version)
            stamped[position] = document
        return stamped


class IngestHandler:
    """The work of IngestDocuments; every failure is a TextMatchError."""

    def __init__(self, index: Index, state: IngestDependencies, clock: VersionClock) -> None:
        self._index = index
        self._state = state
        self._clock = clock

    async def ingest(
        self, requests: AsyncIterator[pb.IngestDocumentsRequest], deadline: float | None
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        """One response for each request, in order; its accepted documents are then durable in the queue.

        The next request is not read before there was room in the queue for this one.

        Args:
            deadline: of the caller, on the monotonic clock; None if it has none.

        Raises:
            InvalidInput: a request has no documents or too many.
            Overloaded: the queue is full, and stays so until just before the deadline.
            DependencyUnavailable: Redis does not answer; nothing of this request was acknowledged.
        """
        async for request in requests:
            check_item_count("documents", len(request.documents), MAX_DOCUMENTS)
            yield pb.IngestDocumentsResponse(results=await self._ingest(request.documents, deadline))

    async def _ingest(self, messages: Sequence[pb.Document], deadline: float | None) -> list[pb.IngestResult]:
        """Everything is kept by position, because an id may come more than once."""
        documents: dict[int, Document] = {}
        results: dict[int, pb.IngestResult] = {}
        for position, message in enumerate(messages):
            document = from_proto(message)
            if error := _input_error(f"documents[{position}].", message, document):
                results[position] = _rejected(document, error)
            else:
                documents[position] = document

        unchanged = await self._unchanged(documents)
        for position, version in unchanged.items():
            document = documents.pop(position)
            results[position] = _result(document.id, version, pb.INGEST_OUTCOME_UNCHANGED)

        accepted = self._clock.stamp(documents)
        if accepted:
            entering = list(accepted.values())
            async with self._state.admission.entry(entering, deadline):
                await self._state.producer.enqueue(entering, current_traceparent())
        for position, document in accepted.items():
            results[position] = _result(document.id, document.version, pb.INGEST_OUTCOME_ACCEPTED)
        return [results[position] for position in range(len(messages))]

    async def _unchanged(self, documents: Mapping[int, Document]) -> dict[int, int]:
        """The stored versions of documents that need no write, by position.

        What waits is asked first: a write that waits no more by then is stored when the index is asked.
        """
        ids = {document.id for document in documents.values()}
        ids -= (await self._state.pending.versions(ids)).keys()
        if not ids:
            return {}
        buried = await self._state.tombstones.get(ids)
        try:
            stored = await self._index.fetch(list(ids))
        except TextMatchError as error:
            # A write is never refused for the sake of an optimisation.
            _log.warning("cannot tell what is unchanged", extra={"error": str(error)})
            return {}
        unchanged: dict[int, int] = {}
        written: set[str] = set()
        for position, document in documents.items():
            found = stored.get(document.id)
            if (
                found is not None
                and document.id not in written
                and buried.get(document.id, 0) < found.document.version
                and _is_same(document, found)
            ):
                unchanged[position] = found.document.version
            else:
                written.add(document.id)
        return unchanged


def _input_error(prefix: str, message: pb.Document, document: Document) -> InvalidInput | None:
    violations = document_violations(document, prefix)
    if message.HasField("version") and message.version == 0:
        violations += filter(None, [version_violation(f"{prefix}version", 0)])
    return InvalidInput(violations) if violations else None


def _is_same(document: Document, stored: StoredDocument) -> bool:
    return document.version <= stored.document.version and content_hash(document) == stored.content_hash


def _rejected(document: Document, error: InvalidInput) -> pb.IngestResult:
    return pb.IngestResult(id=document.id, outcome=pb.INGEST_OUTCOME_REJECTED, error=to_status(error))


def _result(document_id: str, version: int, outcome: pb.IngestOutcome.ValueType) -> pb.IngestResult:
    return pb.IngestResult(id=document_id, outcome=outcome, version=version)
