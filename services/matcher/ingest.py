"""Accepts documents: each gets a version and is queued, unless it is already stored with the same content.
Deletes among them are queued too, so that they are accepted while Qdrant does not answer.

While the queue is full, callers of IngestDocuments wait: the matcher stops reading the stream of a waiting
request, and gRPC's flow control slows its caller down. Callers are admitted in the order of arrival. All
matchers measure the same queue, and each adds the documents that it is just enqueuing. The limit is therefore
exceeded by at most one request of each matcher.

The version of a document without one is the time of acceptance by the clock in Redis
(textmatch/queue/clock.py). It is given once for a request, not once for a try. Example: a client writes A,
the answer is lost, another client writes B, the first client tries again. With a new version, A would
overwrite B. Therefore the client sends a `request_id` with every try, and Redis keeps the version of the
first one: the second try is an older version than B and changes nothing. The same holds for deletes. No
other clock is used.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.matcher import metrics
from textmatch.collection_store import Collection
from textmatch.documents import Document, content_hash
from textmatch.errors import (
    CollectionNotFound,
    CollectionNotOwned,
    DependencyUnavailable,
    DocumentDeleted,
    Overloaded,
    TextMatchError,
    VersionMismatch,
    VersionsExhausted,
)
from textmatch.index.points import Fingerprint
from textmatch.queue.clock import UNREPEATED, Request
from textmatch.queue.depth import DepthSample, KeptSample, QueueDepth
from textmatch.queue.producer import Observation, Producer, Refusal, Submission
from textmatch.runtime.tracing import current_traceparent
from textmatch.time_slices import in_slices
from textmatch.types import DocumentResult, IngestOutcome

_POLL_SECONDS = 0.1
_RETRY_SECONDS = 2.0
# What is full for days, or until an operator acts.
_OPERATOR_SECONDS = 60.0
# How long a measurement of what grows slowly is used.
_KEPT_SECONDS = 1.0
# How long a request is known after its deadline; a client tries again within seconds.
_REQUEST_SECONDS = 300
_MAX_CALL_SECONDS = 3600
# Finding unchanged documents only saves work: acceptance does not wait longer for Qdrant.
_LOOK_UP_SECONDS = 1.0
# An expected version cannot be checked without Qdrant.
_OBSERVE_SECONDS = 5.0
# A waiting caller is refused this long before its deadline, or this share of its time if that is less.
_MARGIN_SECONDS = 1.0
_MARGIN_SHARE = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueueLimits:
    """The size from which the queue, and what is kept after it, count as full."""

    documents: int
    size_bytes: int
    tombstone_bytes: int
    dead_letter_bytes: int


class Admission:
    """Admits documents into the queue while it has room."""

    def __init__(self, depth: QueueDepth, limits: QueueLimits) -> None:
        self._depth = depth
        self._limits = limits
        self._lock = asyncio.Lock()
        self._kept = KeptSample(0, 0)
        self._kept_until = 0.0
        self._entering_documents = 0
        self._entering_bytes = 0

    @asynccontextmanager
    async def entry(self, documents: Sequence[Document], deadline: float | None) -> AsyncIterator[None]:
        """Wait until there is room. The caller enqueues these documents in the block.

        Args:
            deadline: of the caller, on the monotonic clock; None if it has none.

        Raises:
            Overloaded: there is no room before the deadline, or no room for more dead letters.
            DependencyUnavailable: Redis does not answer.
        """
        kept = await self._measure_kept()
        if kept.dead_letter_bytes >= self._limits.dead_letter_bytes:
            raise Overloaded(
                f"the dead letters are full; their limit is {self._limits.dead_letter_bytes:,} bytes. An"
                " operator must replay or drop some: textmatch dead-letters list",
                retry_delay_seconds=_OPERATOR_SECONDS,
            )
        started = time.monotonic()
        try:
            async with asyncio.timeout_at(_refuse_at(deadline)), self._lock:
                await self._room()
                size_bytes = sum(len(document.text.encode()) for document in documents)
                self._entering_documents += len(documents)
                self._entering_bytes += size_bytes
        except TimeoutError:
            limits = f"{self._limits.documents:,} documents or {self._limits.size_bytes:,} bytes"
            raise Overloaded(
                f"the ingest queue is full; its limit is {limits}", retry_delay_seconds=_RETRY_SECONDS
            ) from None
        finally:
            held_seconds = time.monotonic() - started
            if held_seconds >= _POLL_SECONDS:
                metrics.INGEST_HELD_SECONDS.observe(held_seconds)
        try:
            yield
        finally:
            self._entering_documents -= len(documents)
            self._entering_bytes -= size_bytes

    async def check_delete(self) -> None:
        """Check that one more delete can be remembered.

        Raises:
            Overloaded: there is no room.
            DependencyUnavailable: Redis does not answer.
        """
        kept = await self._measure_kept()
        if kept.tombstone_bytes >= self._limits.tombstone_bytes:
            raise Overloaded(
                f"too many deletes are remembered; the limit is {self._limits.tombstone_bytes:,} bytes",
                retry_delay_seconds=_OPERATOR_SECONDS,
            )

    async def _measure_kept(self) -> KeptSample:
        if time.monotonic() >= self._kept_until:
            self._kept = await self._depth.measure_kept()
            self._kept_until = time.monotonic() + _KEPT_SECONDS
        return self._kept

    async def _room(self) -> None:
        while not self._fits(await self._depth.measure()):  # noqa: ASYNC110 -- Redis sends no events
            await asyncio.sleep(_POLL_SECONDS)

    def _fits(self, waiting: DepthSample) -> bool:
        return (
            waiting.documents + self._entering_documents < self._limits.documents
            and waiting.size_bytes + self._entering_bytes < self._limits.size_bytes
        )


def _refuse_at(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    remaining_seconds = max(0.0, deadline - time.monotonic())
    return deadline - min(_MARGIN_SECONDS, _MARGIN_SHARE * remaining_seconds)


@dataclass(frozen=True)
class IngestDependencies:
    """What all collections share: the queue, and how long deletes are remembered."""

    producer: Producer
    admission: Admission
    tombstone_seconds: int


def remembered(request_id: str, deadline: float | None) -> Request:
    """A request that is remembered until its last try is over.

    Args:
        request_id: the same for all its tries; empty if the client sends none.
        deadline: of this try, on the monotonic clock; None if it has none.
    """
    if not request_id:
        return UNREPEATED
    remaining_seconds = _MAX_CALL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
    return Request(request_id.lower(), _REQUEST_SECONDS + int(min(remaining_seconds, _MAX_CALL_SECONDS)))


class IngestHandler:
    """Accepts valid documents. Every failure is a TextMatchError."""

    def __init__(self, dependencies: IngestDependencies) -> None:
        self._dependencies = dependencies

    async def ingest(
        self,
        collection: Collection,
        documents: Mapping[int, Document],
        deadline: float | None,
        request_id: str = "",
    ) -> list[DocumentResult]:
        """One result for each document; those that are accepted are durable in the queue.

        Args:
            documents: by their position in the request, because an id may come more than once.
            deadline: of the caller, on the monotonic clock; None if it has none.
            request_id: the same for each try of a request; empty if the client sends none.

        Raises:
            Overloaded: the queue is full, and stays so until just before the deadline; or no more
                deletes can be remembered.
            DependencyUnavailable: Redis does not answer; no document was acknowledged.
            CollectionNotFound: the collection has been deleted.
            CollectionNotOwned: another installation has taken over the collection.
        """
        ids = list({document.id for document in documents.values()})
        # Read before the index: a write that has left the queue by then is in the index.
        pending = await collection.pending.versions(ids)
        # What is stored only saves work, and raises versions above those that clients have set. Without it,
        # all documents are written.
        stored, problem = await _look_up(collection, ids, _LOOK_UP_SECONDS)
        if problem:
            _log.warning("cannot find stored documents", extra={"error": problem})
        if any(one.deleted for one in documents.values()):
            await self._dependencies.admission.check_delete()
        tombstones = await collection.tombstones.get(stored)
        deleted = {
            one
            for one, tombstone in tombstones.items()
            if tombstone.covers(stored[one].version, stored[one].accepted_us)
        }
        unchanged = await _unchanged(documents, stored, pending.keys() | deleted)
        to_write = {at: one for at, one in documents.items() if at not in unchanged}
        versions: list[int] = []
        undecided: dict[int, TextMatchError] = {}
        if to_write:
            known = {one: found.version for one, found in stored.items()}
            async with self._dependencies.admission.entry(list(to_write.values()), deadline):
                observed, undecided = await self._observe(collection, to_write)
                to_write = {at: one for at, one in to_write.items() if at not in undecided}
                if to_write:
                    submission = Submission(
                        known,
                        remembered(request_id, deadline),
                        current_traceparent(),
                        self._dependencies.tombstone_seconds,
                        observed,
                    )
                    versions = await self._dependencies.producer.enqueue(
                        collection.config, list(to_write.values()), submission
                    )
        return [
            *(
                DocumentResult(position, documents[position].id, IngestOutcome.UNCHANGED, version)
                for position, version in unchanged.items()
            ),
            *(
                _result(position, document, version)
                for (position, document), version in zip(to_write.items(), versions, strict=True)
            ),
            *(
                DocumentResult(position, documents[position].id, IngestOutcome.REJECTED, error=error)
                for position, error in undecided.items()
            ),
        ]

    async def _observe(
        self, collection: Collection, documents: Mapping[int, Document]
    ) -> tuple[dict[str, Observation], dict[int, TextMatchError]]:
        """The versions, by id, that documents have which expect one; or by position why they cannot be read.

        What is queued counts as if it were stored, because workers will store it.
        """
        conditional = {at: one for at, one in documents.items() if one.expected_version is not None}
        ids = list({one.id for one in conditional.values()})
        if not ids:
            return {}, {}
        # The order matters: textmatch/queue/pending.py explains it.
        watches = await collection.pending.watch(ids)
        pending = await collection.pending.versions(ids)
        stored, problem = await _look_up(collection, ids, _OBSERVE_SECONDS)
        if problem:
            undecided = DependencyUnavailable(
                f"whether it has the expected version is not known: {problem}",
                retry_delay_seconds=_RETRY_SECONDS,
            )
            return {}, dict.fromkeys(conditional, undecided)
        tombstones = await collection.tombstones.get(ids)
        observed: dict[str, Observation] = {}
        for one in ids:
            version, tombstone, found = pending.get(one, 0), tombstones.get(one), stored.get(one)
            is_covered = found and tombstone and tombstone.covers(found.version, found.accepted_us)
            if found and not is_covered:
                version = max(version, found.version)
            if tombstone and version <= tombstone.version:
                version = 0
            observed[one] = Observation(version, watches[one])
        return observed, {}


async def _look_up(
    collection: Collection, ids: Sequence[str], timeout_seconds: float
) -> tuple[dict[str, Fingerprint], str]:
    """What is stored under these ids, and why it cannot be read; "" if it was read.

    Raises:
        CollectionNotFound: the collection has been deleted.
        CollectionNotOwned: another installation has taken over the collection.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            return await collection.index.fingerprints(ids), ""
    except (CollectionNotFound, CollectionNotOwned):
        raise
    except (TextMatchError, TimeoutError) as error:
        return {}, str(error) or f"Qdrant did not answer within {timeout_seconds:g} s"


async def _unchanged(
    documents: Mapping[int, Document], stored: Mapping[str, Fingerprint], changing: AbstractSet[str]
) -> dict[int, int]:
    """The stored versions of documents that need no write, by position.

    Args:
        changing: ids that are queued or deleted.
    """
    written = set(changing)
    unchanged: dict[int, int] = {}
    async for position, document in in_slices(documents.items()):
        found = stored.get(document.id)
        if (
            found is not None
            and not document.deleted
            and document.expected_version is None
            and document.id not in written
            and document.version <= found.version
            and content_hash(document) == found.content_hash
        ):
            unchanged[position] = found.version
        else:
            written.add(document.id)
    return unchanged


def _result(position: int, document: Document, version: int) -> DocumentResult:
    error: TextMatchError
    if version >= 0:
        return DocumentResult(position, document.id, IngestOutcome.ACCEPTED, version)
    if version == Refusal.DELETED:
        error = DocumentDeleted.of(document.version)
    elif version == Refusal.MISMATCH:
        error = VersionMismatch.of(document.expected_version or 0)
    else:
        error = VersionsExhausted.of(document.id)
    return DocumentResult(position, document.id, IngestOutcome.REJECTED, error=error)
