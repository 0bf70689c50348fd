"""The document half of MatcherService: taking documents in, reading, deleting, and where they stand."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

from services.matcher.protos import to_filter
from textmatch.attributes import from_struct, to_struct
from textmatch.documents import (
    Document,
    check_item_count,
    content_hash,
    document_violations,
    id_violation,
    version_now,
    version_violation,
)
from textmatch.errors import DocumentNotFound, InvalidInput, TextMatchError
from textmatch.index.schema import StoredDocument
from textmatch.index.store import Index
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer
from textmatch.queue.tombstones import Tombstones
from textmatch.runtime.grpc_errors import to_status
from textmatch.v1 import matcher_service_pb2 as pb

_log = logging.getLogger(__name__)

MAX_DOCUMENTS = 1_000
MAX_DELETED_IDS = 1_000


@dataclass(frozen=True)
class IngestState:
    """What Redis holds of documents on their way, and for how long deletes are remembered."""

    producer: Producer
    pending: Pending
    tombstones: Tombstones
    dead_letters: DeadLetters
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


class DocumentsHandler:
    """What the servicer calls; every failure is a TextMatchError."""

    def __init__(self, index: Index, state: IngestState) -> None:
        self._index = index
        self._state = state
        self._clock = VersionClock()

    async def ingest(
        self, requests: AsyncIterator[pb.IngestDocumentsRequest]
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        """One response for each request, in order; its accepted documents are then durable in the queue.

        Raises:
            InvalidInput: a request has no documents or too many.
            DependencyUnavailable: Redis does not answer; nothing of this request was acknowledged.
        """
        async for request in requests:
            check_item_count("documents", len(request.documents), MAX_DOCUMENTS)
            yield pb.IngestDocumentsResponse(results=await self._ingest(request.documents))

    async def get(self, request: pb.GetDocumentRequest) -> pb.GetDocumentResponse:
        """A stored document.

        Raises:
            DocumentNotFound: it is not stored, though it may be in the queue.
        """
        _check_id("id", request.id)
        stored = await self._index.fetch([request.id])
        if request.id not in stored:
            raise DocumentNotFound(request.id)
        document = stored[request.id].document
        message = pb.Document(
            id=document.id,
            text=document.text,
            attributes=to_struct(document.attributes),
            version=document.version,
        )
        return pb.GetDocumentResponse(document=message)

    async def delete(self, request: pb.DeleteDocumentsRequest) -> pb.DeleteDocumentsResponse:
        """Remove documents, and keep older writes of them from bringing them back.

        A filter finds what is stored, not what still waits in the queue.
        """
        version = self._delete_version(request)
        deleted_count = 0
        async for ids in self._ids_to_delete(request):
            deleted_count += await self._delete(dict.fromkeys(ids, version))
        return pb.DeleteDocumentsResponse(deleted_count=deleted_count)

    async def status(self, request: pb.GetIngestStatusRequest) -> pb.GetIngestStatusResponse:
        """The totals, and where one document stands if one was asked for."""
        waiting = await self._state.pending.summary()
        response = pb.GetIngestStatusResponse(
            document_count=await self._index.count(),
            queued_count=waiting.count,
            oldest_queued_seconds=waiting.oldest_seconds(time.time()),
            dead_letter_count=await self._state.dead_letters.count(),
            collection=await self._index.collection(),
        )
        if request.document_id:
            _check_id("document_id", request.document_id)
            state, error = await self._document_state(request.document_id)
            response.document_state = state
            response.document_error = error
        return response

    async def _ingest(self, messages: Sequence[pb.Document]) -> list[pb.IngestResult]:
        """Everything is kept by position, because an id may come more than once."""
        documents: dict[int, Document] = {}
        results: dict[int, pb.IngestResult] = {}
        for position, message in enumerate(messages):
            document = _to_document(message)
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
            await self._state.producer.enqueue(list(accepted.values()))
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

    def _delete_version(self, request: pb.DeleteDocumentsRequest) -> int:
        if not request.HasField("version"):
            return self._clock.next()
        if violation := version_violation("version", request.version):
            raise InvalidInput([violation])
        return request.version

    async def _ids_to_delete(self, request: pb.DeleteDocumentsRequest) -> AsyncIterator[list[str]]:
        if bool(request.ids) == request.HasField("filter"):
            raise InvalidInput.of_field("ids", "give either ids or a filter")
        if request.ids:
            check_item_count("ids", len(request.ids), MAX_DELETED_IDS)
            violations = [id_violation(f"ids[{position}]", one) for position, one in enumerate(request.ids)]
            if found := [violation for violation in violations if violation]:
                raise InvalidInput(found)
            yield list(request.ids)
            return
        condition = to_filter(request.filter, "filter")
        if not (condition.must or condition.should or condition.must_not):
            raise InvalidInput.of_field("filter", "is empty; it would delete every document")
        async for ids in self._index.find_ids(condition):
            yield ids

    async def _delete(self, versions: Mapping[str, int]) -> int:
        """Tombstones first: workers/indexing.py explains why no racing write survives then."""
        await self._state.tombstones.add(versions, self._state.tombstone_seconds)
        deleted_count = await self._index.delete(versions)
        await self._state.dead_letters.clear(versions)
        await self._state.pending.clear(versions)
        return deleted_count

    async def _document_state(self, document_id: str) -> tuple[pb.DocumentState.ValueType, str]:
        if await self._state.pending.versions([document_id]):
            return pb.DOCUMENT_STATE_PENDING, ""
        if letter := await self._state.dead_letters.get(document_id):
            return pb.DOCUMENT_STATE_FAILED, letter.error
        if await self._index.fetch([document_id]):
            return pb.DOCUMENT_STATE_INDEXED, ""
        if await self._state.tombstones.get([document_id]):
            return pb.DOCUMENT_STATE_DELETED, ""
        return pb.DOCUMENT_STATE_UNKNOWN, ""


def _to_document(message: pb.Document) -> Document:
    attributes = from_struct(message.attributes)
    return Document(id=message.id, text=message.text, attributes=attributes, version=message.version)


def _input_error(prefix: str, message: pb.Document, document: Document) -> InvalidInput | None:
    violations = document_violations(document, prefix)
    if message.HasField("version") and message.version == 0:
        violations += filter(None, [version_violation(f"{prefix}version", 0)])
    return InvalidInput(violations) if violations else None


def _is_same(document: Document, stored: StoredDocument) -> bool:
    return document.version <= stored.document.version and content_hash(document) == stored.content_hash


def _check_id(field: str, document_id: str) -> None:
    if violation := id_violation(field, document_id):
        raise InvalidInput([violation])


def _rejected(document: Document, error: InvalidInput) -> pb.IngestResult:
    return pb.IngestResult(id=document.id, outcome=pb.INGEST_OUTCOME_REJECTED, error=to_status(error))


def _result(document_id: str, version: int, outcome: pb.IngestOutcome.ValueType) -> pb.IngestResult:
    return pb.IngestResult(id=document_id, outcome=outcome, version=version)
