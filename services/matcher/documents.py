"""The document methods of MatcherService: reading, deleting and status. ingest.py accepts documents."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.matcher.ingest import IngestDependencies
from textmatch.collection_store import Collection
from textmatch.documents import (
    MAX_VERSION,
    Document,
    check_item_count,
    id_violation,
    request_id_violation,
    version_violation,
)
from textmatch.errors import DependencyUnavailable, DocumentNotFound, InvalidInput, raise_violations
from textmatch.filters import Filter, HasId
from textmatch.queue.tombstones import FilterTombstone
from textmatch.types import DocumentState, IngestStatus

MAX_DELETED_IDS = 1_000


@dataclass(frozen=True)
class DeleteVersion:
    """Up to which version a delete goes: `version`, or if that is None, now.

    For a retry, "now" is the time of the first try, which has the same `request_id`. `deadline` is that of
    the caller, on the monotonic clock.
    """

    version: int | None = None
    request_id: str = ""
    deadline: float | None = None


class DocumentsHandler:
    """Implements the document methods of the servicer. Every failure is a TextMatchError."""

    def __init__(self, dependencies: IngestDependencies) -> None:
        self._dependencies = dependencies

    async def get(self, collection: Collection, document_id: str) -> Document:
        """A stored document.

        Raises:
            DocumentNotFound: it is not stored, though it may be in the queue.
        """
        raise_violations([id_violation("id", document_id)])
        stored = await collection.index.fetch([document_id])
        if document_id not in stored:
            raise DocumentNotFound(document_id)
        return stored[document_id].document

    async def delete(
        self, collection: Collection, ids: Sequence[str], cut: DeleteVersion, *, is_dry_run: bool = False
    ) -> int:
        """Delete documents, and keep older writes from restoring them. Returns how many were stored.

        Args:
            is_dry_run: delete nothing, only count.
        """
        check_item_count("ids", len(ids), MAX_DELETED_IDS)
        raise_violations(id_violation(f"ids[{position}]", one) for position, one in enumerate(ids))
        if is_dry_run:
            return await _count(collection, Filter(must=(HasId(tuple(ids)),)), cut)
        return await self._delete(collection, dict.fromkeys(ids, await self._version_of(cut, collection)))

    async def delete_where(
        self, collection: Collection, where: Filter, cut: DeleteVersion, *, is_dry_run: bool = False
    ) -> int:
        """Delete the documents that match a filter; otherwise as `delete`.

        They are deleted page by page. A call that ends early has deleted some pages, and a repeated one
        deletes the others.
        """
        if where.is_empty:
            raise InvalidInput.of_field("filter", "is empty; it would delete every document")
        if is_dry_run:
            return await _count(collection, where, cut)
        version = await self._version_of(cut, collection)
        # Ensures that Qdrant accepts the filter before workers apply it to queued documents.
        await anext(collection.index.find_versions(where, max_version=version), None)
        # Before the search: a worker that writes a document after it reads the tombstone after the write.
        tombstone = FilterTombstone(where, version, self._dependencies.tombstone_seconds)
        await collection.tombstones.filters.add(tombstone)
        deleted_count = 0
        async for versions in collection.index.find_versions(where, max_version=version):
            await collection.tombstones.add(versions, self._dependencies.tombstone_seconds)
            await collection.index.delete_matching(where, max_version=version, ids=versions)
            await self._forget(collection, versions)
            deleted_count += len(versions)
        # An earlier call may have failed after it had deleted documents on some replicas only.
        await collection.index.delete_matching(where, max_version=version)
        return deleted_count

    async def status(self, collection: Collection, document_id: str) -> IngestStatus:
        """The totals, and the state of one document if its id is given.

        While Qdrant does not answer, the status has what Redis knows.
        """
        raise_violations([id_violation("document_id", document_id)] if document_id else [])
        waiting = await collection.pending.summary()
        status = IngestStatus(
            document_count=None,
            queued_count=waiting.count,
            oldest_queued_seconds=waiting.oldest_seconds(time.time()),
            dead_letter_count=await collection.dead_letters.count(),
            collection=collection.name,
            model_id="",
        )
        if document_id:
            state, error = await self._queued_state(collection, document_id)
            status = replace(status, document_state=state, document_error=error or None)
        try:
            model_id, count = await collection.index.model_in_use(), await collection.index.count()
            if document_id and status.document_state is None:
                status = replace(status, document_state=await self._stored_state(collection, document_id))
        except DependencyUnavailable as error:
            return replace(status, index_error=str(error))
        return replace(status, model_id=model_id, document_count=count)

    async def _version_of(self, cut: DeleteVersion, collection: Collection) -> int:
        if cut.version is not None:
            raise_violations([version_violation("version", cut.version)])
            return cut.version
        raise_violations([request_id_violation(cut.request_id)])
        return await self._dependencies.issue_version(collection.config, cut.request_id, cut.deadline)

    async def _delete(self, collection: Collection, versions: Mapping[str, int]) -> int:
        """Add tombstones before the delete: workers/indexer.py explains why no concurrent write survives."""
        await collection.tombstones.add(versions, self._dependencies.tombstone_seconds)
        deleted_count = await collection.index.delete(versions)
        await self._forget(collection, versions)
        return deleted_count

    async def _forget(self, collection: Collection, versions: Mapping[str, int]) -> None:
        await collection.dead_letters.clear(versions)
        await collection.pending.clear(versions)

    async def _queued_state(
        self, collection: Collection, document_id: str
    ) -> tuple[DocumentState | None, str]:
        """The state and the error of a document that is not settled in the index."""
        if await collection.pending.versions([document_id]):
            return DocumentState.PENDING, ""
        if letter := await collection.dead_letters.get(document_id):
            return DocumentState.FAILED, letter.error
        return None, ""

    async def _stored_state(self, collection: Collection, document_id: str) -> DocumentState:
        if await collection.index.fetch([document_id]):
            return DocumentState.INDEXED
        if await collection.tombstones.get([document_id]):
            return DocumentState.DELETED
        return DocumentState.UNKNOWN


async def _count(collection: Collection, where: Filter, cut: DeleteVersion) -> int:
    """How many stored documents a delete would remove."""
    if cut.version is not None:
        raise_violations([version_violation("version", cut.version)])
    return await collection.index.count_matching(where, max_version=cut.version or MAX_VERSION)
