"""The document half of MatcherService: reading, deleting, where documents stand; intake.py takes them in."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping

from services.matcher.ingest import IngestDependencies, IngestHandler, VersionClock
from textmatch.documents import (
    check_item_count,
    id_violation,
    version_violation,
)
from textmatch.errors import DocumentNotFound, InvalidInput
from textmatch.index.index import Index
from textmatch.queue.tombstones import FilterTombstone
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import to_proto
from textmatch.wire.matching import filter_from_proto

_log = logging.getLogger(__name__)

MAX_DELETED_IDS = 1_000


class DocumentsHandler:
    """What the servicer calls; every failure is a TextMatchError."""

    def __init__(self, index: Index, state: IngestDependencies) -> None:
        self._index = index
        self._state = state
        self._clock = VersionClock()
        self._intake = IngestHandler(index, state, self._clock)

    def ingest(
        self, requests: AsyncIterator[pb.IngestDocumentsRequest], deadline: float | None = None
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        """See intake.py."""
        return self._intake.ingest(requests, deadline)

    async def get(self, request: pb.GetDocumentRequest) -> pb.GetDocumentResponse:
        """A stored document.

        Raises:
            DocumentNotFound: it is not stored, though it may be in the queue.
        """
        _check_id("id", request.id)
        stored = await self._index.fetch([request.id])
        if request.id not in stored:
            raise DocumentNotFound(request.id)
        return pb.GetDocumentResponse(document=to_proto(stored[request.id].document))

    async def delete(self, request: pb.DeleteDocumentsRequest) -> pb.DeleteDocumentsResponse:
        """Remove documents, and keep older writes of them from bringing them back."""
        version = self._delete_version(request)
        deleted_count = 0
        async for versions in self._versions_to_delete(request, version):
            deleted_count += await self._delete(versions)
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

    def _delete_version(self, request: pb.DeleteDocumentsRequest) -> int:
        if not request.HasField("version"):
            return self._clock.next()
        if violation := version_violation("version", request.version):
            raise InvalidInput([violation])
        return request.version

    async def _versions_to_delete(
        self, request: pb.DeleteDocumentsRequest, version: int
    ) -> AsyncIterator[dict[str, int]]:
        if bool(request.ids) == request.HasField("filter"):
            raise InvalidInput.of_field("ids", "give either ids or a filter")
        if request.ids:
            check_item_count("ids", len(request.ids), MAX_DELETED_IDS)
            violations = [id_violation(f"ids[{position}]", one) for position, one in enumerate(request.ids)]
            if found := [violation for violation in violations if violation]:
                raise InvalidInput(found)
            yield dict.fromkeys(request.ids, version)
            return
        condition = filter_from_proto(request.filter, "filter")
        if not (condition.must or condition.should or condition.must_not):
            raise InvalidInput.of_field("filter", "is empty; it would delete every document")
        # Whether Qdrant can read the filter must be known before workers are told of it.
        await anext(self._index.find_versions(condition, max_version=version), None)
        # Before the search: workers find it after they have written what the search does not see.
        tombstone = FilterTombstone(condition, version, self._state.tombstone_seconds)
        await self._state.tombstones.filters.add(tombstone)
        async for versions in self._index.find_versions(condition, max_version=version):
            yield versions

    async def _delete(self, versions: Mapping[str, int]) -> int:
        """Tombstones first: workers/indexer.py explains why no racing write survives then."""
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


def _check_id(field: str, document_id: str) -> None:
    if violation := id_violation(field, document_id):
        raise InvalidInput([violation])
