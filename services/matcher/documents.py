"""The document methods of MatcherService: reading, deleting, status, dead letters.

ingest.py accepts documents.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from services.matcher.ingest import IngestDependencies, remembered
from textmatch.collection_store import Collection
from textmatch.documents import (
    MAX_TEXT_BYTES,
    Document,
    check_item_count,
    id_violation,
    point_id,
    request_id_violation,
    version_violation,
)
from textmatch.errors import (
    DependencyUnavailable,
    DocumentNotFound,
    InvalidInput,
    raise_violations,
    reason_name,
)
from textmatch.filters import Filter, HasId
from textmatch.index.points import DeleteCondition
from textmatch.queue.clock import Request
from textmatch.queue.dead_letters import DeadLetter, DeadLetters, LetterPosition
from textmatch.time_slices import in_slices
from textmatch.types import DocumentState, DocumentStatus, IngestStatus, LetterInfo, Problem

MAX_IDS = 1_000
# Of up to 100 KB each. Reading more at once would delay other calls.
_READ_AT_ONCE = 100
# A message that could not be read may be large.
_LETTERS_AT_ONCE = 50
# Of the error of a dead letter.
_MAX_ERROR_BYTES = 4 * 1024
# A thousand of them fit into an answer.
_MAX_STATUS_ERROR_BYTES = 1024


@dataclass(frozen=True)
class DeleteScope:
    """What a delete covers: documents up to `version`; if that is None, all that were accepted before it.

    A try after the first one, with the same `request_id`, covers what the first one did. `deadline` is that
    of the caller, on the monotonic clock.
    """

    version: int | None = None
    request_id: str = ""
    deadline: float | None = None

    def request(self) -> Request:
        """The delete as a request that may be tried again.

        Raises:
            InvalidInput: the version or the id of the request is invalid.
        """
        if self.version is not None:
            raise_violations([version_violation("version", self.version)])
        raise_violations([request_id_violation(self.request_id)])
        return remembered(self.request_id, self.deadline)


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

    async def get_many(
        self, collection: Collection, ids: Sequence[str]
    ) -> AsyncIterator[tuple[str, Document | None]]:
        """Each id, in order, with its document if that is stored. They are read as far as the caller goes."""
        _check_ids(ids)
        model_id = await collection.index.model_in_use()
        for start in range(0, len(ids), _READ_AT_ONCE):
            points = {one: point_id(one) for one in ids[start : start + _READ_AT_ONCE]}
            found = {}
            if model_id:
                found = await collection.index.documents(list(points.values()), model_id=model_id)
            async for one in in_slices(ids[start : start + _READ_AT_ONCE]):
                document = found.get(points[one])
                yield one, None if document is None else await _whole(collection, document)

    async def list_after(
        self, collection: Collection, where: Filter, after: str, fields: Sequence[str]
    ) -> AsyncIterator[Document]:
        """The stored documents that match, in a fixed order. They are read as far as the caller goes.

        Args:
            after: the id of a document, stored or not; those after it come. "": all.
            fields: what is read of each document.
        """
        raise_violations([id_violation("page_token", after)] if after else [])
        while True:
            some = await collection.index.documents_after(where, after, _READ_AT_ONCE, fields)
            # The caller converts each of them.
            async for one in in_slices(some):
                if (document := await _whole(collection, one)) is not None:
                    yield document
            if len(some) < _READ_AT_ONCE:
                return
            after = some[-1].id

    async def count(self, collection: Collection, where: Filter) -> int:
        """How many stored documents match."""
        if where.is_empty:
            return await collection.index.count()
        return await collection.index.count_matching(DeleteCondition(where))

    async def letters_after(
        self, letters: DeadLetters, page_token: str
    ) -> AsyncIterator[tuple[str, LetterInfo]]:
        """The dead letters after a page, oldest failure first, each with the token of the page after it.

        They are read as far as the caller goes.
        """
        after = LetterPosition.from_token(page_token)
        while True:
            some = await letters.page(after, _LETTERS_AT_ONCE)
            for position, letter in some:
                if letter is not None:
                    yield position.to_token(), _letter_info(letter)
            if len(some) < _LETTERS_AT_ONCE:
                return
            after = some[-1][0]

    async def replay(self, collection: Collection, letters: DeadLetters, ids: Sequence[str]) -> int:
        """Queue dead letters again; returns how many of them there were."""
        check_item_count("ids", len(ids), MAX_IDS)
        return await letters.replay(dict.fromkeys(ids), self._dependencies.producer, collection.config)

    async def drop(self, letters: DeadLetters, ids: Sequence[str]) -> int:
        """Delete dead letters for good; returns how many of them there were."""
        check_item_count("ids", len(ids), MAX_IDS)
        return await letters.drop(ids)

    async def delete(
        self, collection: Collection, ids: Sequence[str], scope: DeleteScope, *, is_dry_run: bool = False
    ) -> int:
        """Delete documents, and keep older writes from restoring them. Returns how many were stored.

        Args:
            is_dry_run: delete nothing, only count.
        """
        _check_ids(ids)
        request, where = scope.request(), Filter(must=(HasId(tuple(ids)),))
        if is_dry_run:
            return await _count(collection, where, scope)
        await self._dependencies.admission.check_delete()
        ttl_seconds = self._dependencies.tombstone_seconds
        # The tombstones come first: workers/indexer.py explains why no concurrent write survives.
        accepted_us = await collection.tombstones.delete(
            ids, scope.version, ttl_seconds=ttl_seconds, request=request
        )
        if scope.version is not None:
            return await collection.index.delete(dict.fromkeys(ids, scope.version))
        return await self._delete_stored(collection, DeleteCondition(where, accepted_until=accepted_us))

    async def delete_where(
        self, collection: Collection, where: Filter, scope: DeleteScope, *, is_dry_run: bool = False
    ) -> int:
        """Delete the documents that match a filter; otherwise as `delete`.

        They are deleted page by page. A call that ends early has deleted some pages, and a repeated one
        deletes the others.
        """
        if where.is_empty:
            raise InvalidInput.of_field("filter", "is empty; it would delete every document")
        request = scope.request()
        if is_dry_run:
            return await _count(collection, where, scope)
        await self._dependencies.admission.check_delete()
        # Ensures that Qdrant accepts the filter before workers apply it to queued documents.
        await anext(collection.index.find_versions(DeleteCondition(where, scope.version)), None)
        # Before the search: a worker that writes a document after it reads the tombstone after the write.
        accepted_us = await collection.tombstones.filters.delete(
            where, scope.version, ttl_seconds=self._dependencies.tombstone_seconds, request=request
        )
        return await self._delete_stored(collection, DeleteCondition(where, scope.version, accepted_us))

    async def _delete_stored(self, collection: Collection, condition: DeleteCondition) -> int:
        """Delete the stored documents that a condition covers; returns how many."""
        deleted_count = 0
        async for versions in collection.index.find_versions(condition):
            await collection.tombstones.add(versions, self._dependencies.tombstone_seconds)
            await collection.index.delete_matching(condition, ids=versions)
            await collection.dead_letters.clear(versions)
            await collection.pending.clear(versions)
            deleted_count += len(versions)
        # An earlier call may have failed after it had deleted documents on some replicas only.
        await collection.index.delete_matching(condition)
        return deleted_count

    async def status(self, collection: Collection, ids: Sequence[str]) -> IngestStatus:
        """The totals, and the states of documents. It costs some round trips for any number of them.

        While Qdrant does not answer, the status has what Redis knows.
        """
        if ids:
            _check_ids(ids, "document_ids")
        waiting = await collection.pending.summary()
        queued = await self._queued_states(collection, ids)
        status = IngestStatus(
            document_count=None,
            queued_count=waiting.count,
            oldest_queued_seconds=waiting.oldest_seconds,
            dead_letter_count=await collection.dead_letters.count(),
            collection=collection.name,
            model_id="",
            documents=tuple(queued.get(one, DocumentStatus(one, None)) for one in ids),
        )
        try:
            model_id, count = await collection.index.model_in_use(), await collection.index.count()
            truncated_count = await collection.index.count_truncated()
            settled = await self._settled_states(collection, [one for one in ids if one not in queued])
        except DependencyUnavailable as error:
            problem = Problem("qdrant", "", reason_name(error.reason), str(error))
            return replace(status, problems=(problem,))
        documents = tuple(queued.get(one) or settled[one] for one in ids)
        return replace(
            status,
            model_id=model_id,
            document_count=count,
            truncated_count=truncated_count,
            documents=documents,
        )

    async def _queued_states(self, collection: Collection, ids: Sequence[str]) -> dict[str, DocumentStatus]:
        """The states, by id, of those documents that are not settled in the index."""
        pending = await collection.pending.versions(ids)
        states = {
            one: DocumentStatus(one, DocumentState.PENDING, version) for one, version in pending.items()
        }
        failed = await collection.dead_letters.versions([one for one in ids if one not in pending])
        for one, version in failed.items():
            # One by one, because each may have a text of 4 MiB.
            if letter := await collection.dead_letters.get(one):
                error = _cut(letter.error, _MAX_STATUS_ERROR_BYTES)
                states[one] = DocumentStatus(one, DocumentState.FAILED, version, error)
        return states

    async def _settled_states(self, collection: Collection, ids: Sequence[str]) -> dict[str, DocumentStatus]:
        stored = await collection.index.fingerprints(ids)
        tombstones = await collection.tombstones.get([one for one in ids if one not in stored])
        states = {one: DocumentStatus(one, DocumentState.UNKNOWN) for one in ids}
        states |= {
            one: DocumentStatus(one, DocumentState.DELETED, t.version) for one, t in tombstones.items()
        }
        states |= {
            one: DocumentStatus(one, DocumentState.INDEXED, found.version) for one, found in stored.items()
        }
        return states


def _check_ids(ids: Sequence[str], field: str = "ids") -> None:
    check_item_count(field, len(ids), MAX_IDS)
    raise_violations(id_violation(f"{field}[{position}]", one) for position, one in enumerate(ids))


async def _whole(collection: Collection, document: Document) -> Document | None:
    """The document with its whole text; None if that was to be read and is no longer stored."""
    if document.passage is None:
        return document
    stored = (await collection.index.fetch([document.id])).get(document.id)
    return None if stored is None else stored.document


def _letter_info(letter: DeadLetter) -> LetterInfo:
    """What callers see of a dead letter."""
    document = letter.document
    return LetterInfo(
        id=letter.key,
        reason=letter.reason,
        error=_cut(letter.error, _MAX_ERROR_BYTES),
        failed_at=letter.failed_at,
        text=None if document is None else _cut(document.text, MAX_TEXT_BYTES),
        version=0 if document is None else document.version,
        raw=None if letter.raw is None else _cut(letter.raw, MAX_TEXT_BYTES),
    )


def _cut(text: str, max_bytes: int) -> str:
    """What is in the queue may be large, and no Unicode."""
    return text.encode(errors="replace")[:max_bytes].decode(errors="ignore")


async def _count(collection: Collection, where: Filter, scope: DeleteScope) -> int:
    """How many stored documents a delete would remove."""
    return await collection.index.count_matching(DeleteCondition(where, scope.version))
