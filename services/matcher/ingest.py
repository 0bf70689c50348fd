"""Accepts documents: each gets a version and is queued, unless it is already stored with the same content.

While the queue is full, callers of IngestDocuments wait: the matcher stops reading the stream of a waiting
request, and gRPC's flow control slows its caller down. Callers are admitted in the order of arrival. All
matchers measure the same queue, and each adds the documents that it is just enqueuing. The limit is therefore
exceeded by at most one request of each matcher.

The version of a document without one is issued once for a request, not once for a try. Example: a client
writes A, the answer is lost, another client writes B, the first client tries again. With a new version, A
would overwrite B. Therefore the client sends a `request_id` with every try, and Redis keeps the version of
the first one: the second try is an older version than B and changes nothing. The client's clock is not used.
The same holds for deletes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from services.matcher import metrics
from textmatch.collection_config import CollectionConfig
from textmatch.collection_store import Collection
from textmatch.documents import Document, content_hash, version_now
from textmatch.errors import CollectionNotFound, CollectionNotOwned, Overloaded, TextMatchError
from textmatch.queue.depth import DepthSample, QueueDepth
from textmatch.queue.producer import Producer
from textmatch.runtime.tracing import current_traceparent
from textmatch.time_slices import in_slices
from textmatch.types import DocumentResult, IngestOutcome

_POLL_SECONDS = 0.1
_RETRY_SECONDS = 2.0
# How long a request is known after its deadline; a client tries again within seconds.
_REQUEST_SECONDS = 300
_MAX_CALL_SECONDS = 3600
# Finding unchanged documents only saves work: acceptance does not wait longer for Qdrant.
_LOOK_UP_SECONDS = 1.0
# A waiting caller is refused this long before its deadline, or this share of its time if that is less.
_MARGIN_SECONDS = 1.0
_MARGIN_SHARE = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueueLimits:
    """The size from which the queue counts as full."""

    documents: int
    size_bytes: int


class Admission:
    """Admits documents into the queue while it has room."""

    def __init__(self, depth: QueueDepth, limits: QueueLimits) -> None:
        self._depth = depth
        self._limits = limits
        self._lock = asyncio.Lock()
        self._entering_documents = 0
        self._entering_bytes = 0

    @asynccontextmanager
    async def entry(self, documents: Sequence[Document], deadline: float | None) -> AsyncIterator[None]:
        """Wait until there is room. The caller enqueues these documents in the block.

        Args:
            deadline: of the caller, on the monotonic clock; None if it has none.

        Raises:
            Overloaded: there is no room before the deadline.
            DependencyUnavailable: Redis does not answer.
        """
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


class VersionClock:
    """Versions for documents without one: the time in microseconds, strictly increasing."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """A version above all earlier ones."""
        self._last = max(version_now(), self._last + 1)
        return self._last

    def stamp(self, documents: Mapping[int, Document], base: int) -> dict[int, Document]:
        """Set missing versions: `base` for all, but higher for each repetition of an id."""
        repeats: Counter[str] = Counter()
        stamped = {}
        for position, document in documents.items():
            if not document.version:
                document = replace(document, version=base + repeats[document.id])
                repeats[document.id] += 1
                self._last = max(self._last, document.version)
            stamped[position] = document
        return stamped


@dataclass(frozen=True)
class IngestDependencies:
    """What all collections share: the queue, and how long deletes are remembered."""

    producer: Producer
    admission: Admission
    tombstone_seconds: int
    clock: VersionClock = field(default_factory=VersionClock)

    async def issue_version(
        self, collection: CollectionConfig, request_id: str, deadline: float | None
    ) -> int:
        """A version for what has none; for a retry, the version of the first try.

        Args:
            request_id: a UUID; empty: the version is new.
            deadline: of the caller, on the monotonic clock; None if it has none.

        Raises:
            DependencyUnavailable: Redis does not answer or is full.
        """
        version = self.clock.next()
        if not request_id:
            return version
        remaining_seconds = _MAX_CALL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        ttl_seconds = _REQUEST_SECONDS + int(min(remaining_seconds, _MAX_CALL_SECONDS))
        return await self.producer.first_version(collection, request_id.lower(), version, ttl_seconds)


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
            Overloaded: the queue is full, and stays so until just before the deadline.
            DependencyUnavailable: Redis does not answer; no document was acknowledged.
            CollectionNotFound: the collection has been deleted.
            CollectionNotOwned: another installation has taken over the collection.
        """
        unchanged = await self._unchanged(collection, documents)
        to_write = {at: one for at, one in documents.items() if at not in unchanged}
        accepted = await self._stamped(collection, to_write, request_id, deadline)
        if accepted:
            entering = list(accepted.values())
            async with self._dependencies.admission.entry(entering, deadline):
                await self._dependencies.producer.enqueue(collection.config, entering, current_traceparent())
        return [
            *(
                DocumentResult(position, documents[position].id, IngestOutcome.UNCHANGED, version)
                for position, version in unchanged.items()
            ),
            *(
                DocumentResult(position, document.id, IngestOutcome.ACCEPTED, document.version)
                for position, document in accepted.items()
            ),
        ]

    async def _stamped(
        self,
        collection: Collection,
        documents: dict[int, Document],
        request_id: str,
        deadline: float | None,
    ) -> dict[int, Document]:
        if all(document.version for document in documents.values()):
            return documents
        base = await self._dependencies.issue_version(collection.config, request_id, deadline)
        return self._dependencies.clock.stamp(documents, base)

    async def _unchanged(self, collection: Collection, documents: Mapping[int, Document]) -> dict[int, int]:
        """The stored versions of documents that need no write, by position.

        The queue is asked before the index: a write that has left the queue by then is in the index.
        """
        ids = {document.id for document in documents.values()}
        ids -= (await collection.pending.versions(ids)).keys()
        if not ids:
            return {}
        tombstones = await collection.tombstones.get(ids)
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS):
                stored = await collection.index.fingerprints(list(ids))
        except (CollectionNotFound, CollectionNotOwned):
            raise
        except (TextMatchError, TimeoutError) as error:
            # All documents are written.
            reason = str(error) or f"Qdrant did not answer within {_LOOK_UP_SECONDS:g} s"
            _log.warning("cannot find unchanged documents", extra={"error": reason})
            return {}
        unchanged: dict[int, int] = {}
        written: set[str] = set()
        async for position, document in in_slices(documents.items()):
            found = stored.get(document.id)
            if (
                found is not None
                and document.id not in written
                and tombstones.get(document.id, 0) < found.version
                and document.version <= found.version
                and content_hash(document) == found.content_hash
            ):
                unchanged[position] = found.version
            else:
                written.add(document.id)
        return unchanged
