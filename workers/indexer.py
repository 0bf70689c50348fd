"""What a worker does with a batch of documents.

Deletes and writes of the same document race. A deleter first leaves a tombstone and then deletes; this
pipeline looks for tombstones before it writes and again after the write is durable. Whatever the order, a
document whose version the tombstone covers does not stay:

* The tombstone is there at the second look: it is found, and the document removed again.
* It comes later: then the write was finished before it, and so before the deleter's own delete, which
removes it.

A worker that dies between the write and the second look has not acknowledged its message, so that the next
one finds the tombstone at its first look. That is why every document with a tombstone is removed, and not
only those written just now. Each delete names the tombstone's version and spares newer ones.

Documents go into the collection in use and then into its mirrors, and the aliases are read again before the
second look; textmatch/indexing.py says why nothing is missing then after a change of the model.

Deletes by a filter, applied to documents that were still queued when the filter was asked for.

Qdrant itself decides what fits, so that the answer is the same as for documents that were stored before: they
are written first and found then. As in indexing.py, the filter's tombstone is either found after the write,
or it came later, and then the deleter's own search sees what was written.

Each document found leaves a tombstone of its own version, which keeps older versions from coming back and
spares newer ones that do not fit.

Keeping the collections beside the one in use equal to it: the one being built, the one kept to go back to.

Ingest must not stand still because of them. If the encoder does not serve a mirror's model, batches wait for
it a while, as other encoders may serve it; then the mirror loses its role, and an operator learns of it. From
then on it lacks writes, so that it cannot be put to use before `textmatch reindex` has completed it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from textmatch.documents import Document
from textmatch.encoder_client import EncoderClient
from textmatch.errors import InvalidInput, ModelMismatch
from textmatch.index.collections import Role, Roles
from textmatch.index.index import Index
from textmatch.index.schema import StoredDocument
from textmatch.indexing import Copier, EmbeddedDocuments, embed_documents
from textmatch.queue.dead_letters import DeadLetter, DeadLetters
from textmatch.queue.pending import Pending
from textmatch.queue.tombstones import FilterTombstone, Tombstones
from workers import metrics

_log = logging.getLogger(__name__)


async def bury_by_filters(
    documents: Mapping[str, Document], index: Index, tombstones: Tombstones
) -> dict[str, int]:
    """Leave tombstones for those of these documents that a filter covers; returns their versions by id."""
    oldest = min(document.version for document in documents.values())
    buried: dict[str, int] = {}
    for tombstone in await tombstones.filters.from_version(oldest):
        found = await _found(tombstone, documents, index)
        if found:
            await tombstones.add(found, tombstone.ttl_seconds)
        buried |= found
    return buried


async def _found(
    tombstone: FilterTombstone, documents: Mapping[str, Document], index: Index
) -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        async for page in index.find_versions(
            tombstone.condition, max_version=tombstone.version, ids=documents
        ):
            found |= page
    except InvalidInput as error:
        # Nothing fits a filter that cannot be read, and no document is at fault for it.
        _log.error("filter of a delete cannot be read", extra={"error": str(error)})
    return found


class DualWriter:
    """Shared by all batches of a worker."""

    def __init__(self, index: Index, copier: Copier, patience_seconds: float) -> None:
        self._index = index
        self._copier = copier
        self._patience_seconds = patience_seconds
        # Since when no batch could be written, on the monotonic clock, by collection.
        self._failing_since: dict[str, float] = {}

    async def update(self, ids: Sequence[str], roles: Roles) -> None:
        """Make the mirrors hold what the collection in use holds of these documents.

        Raises:
            ModelMismatch: a mirror's model is not served, and it may be tried again.
            TextMatchError: it must be tried again.
        """
        metrics.ABANDONED_COLLECTIONS.set(1 if roles.abandoned else 0)
        for role, mirror in ((Role.NEXT, roles.next), (Role.PREVIOUS, roles.previous)):
            if mirror:
                await self._update(ids, role, source=roles.in_use, mirror=mirror)

    async def _update(self, ids: Sequence[str], role: Role, *, source: str, mirror: str) -> None:
        try:
            copied = await self._copier.copy(ids, source=source, target=mirror)
        except ModelMismatch as error:
            since = self._failing_since.setdefault(mirror, time.monotonic())
            if time.monotonic() - since < self._patience_seconds:
                raise
            await self._index.succession.abandon(role)
            _log.error(
                "collection abandoned: its model is not served",
                extra={"collection": mirror, "error": str(error)},
            )
            return
        for letter in copied.refused.values():
            _log.warning(
                "document missing in the mirror",
                extra={"document_id": letter.key, "collection": mirror, "error": letter.error},
            )
        self._failing_since.pop(mirror, None)


@dataclass(frozen=True)
class Dependencies:
    """What the pipeline works with."""

    encoder: EncoderClient
    index: Index
    mirrors: DualWriter
    pending: Pending
    tombstones: Tombstones
    dead_letters: DeadLetters
    encode_timeout_seconds: float


class Result(Enum):
    """What became of a document; the values are labels of a metric."""

    INDEXED = "indexed"
    # Written with the embedding that was stored for the same text.
    UNCHANGED_TEXT = "unchanged_text"
    # As new a version, or a newer one, is stored or in the same batch.
    STALE = "stale"
    # A tombstone covers it.
    DELETED = "deleted"
    # In the dead letters.
    FAILED = "failed"


async def index_documents(documents: Sequence[Document], deps: Dependencies) -> list[Result]:
    """Settle every document; the results are in their order. May be repeated with the same documents.

    Raises:
        TextMatchError: nothing is settled for good; the whole batch must be tried again.
    """
    newest = _newest_of_each(documents)
    buried = await _buried(newest, deps)
    to_write = [document for document in newest.values() if document.id not in buried]
    results, refused = await _write_everywhere(to_write, list(newest), deps)
    buried |= await _buried(newest, deps)
    buried |= await bury_by_filters(newest, deps.index, deps.tombstones)
    await deps.index.delete(buried)
    results |= dict.fromkeys(buried, Result.DELETED)

    await deps.dead_letters.add(refused)
    await _settle(newest, results, deps)
    return [results[one.id] if newest[one.id] is one else Result.STALE for one in documents]


async def _write_everywhere(
    documents: Sequence[Document], ids: Sequence[str], deps: Dependencies
) -> tuple[dict[str, Result], list[DeadLetter]]:
    """Write what is not stale to the collection in use, make its mirrors equal to it for all `ids`."""
    results = dict.fromkeys(ids, Result.STALE)
    refused: dict[str, DeadLetter] = {}
    roles, latest = None, await deps.index.roles()
    while roles != latest:
        embedded = await _write(documents, latest.in_use, deps)
        # The first documents of all have created their collection.
        roles = replace(latest, in_use=embedded.model_id)
        # In a second round most are stale, because the first one has written them.
        results |= {document.id: Result.INDEXED for document in embedded.documents}
        results |= dict.fromkeys(embedded.reused, Result.UNCHANGED_TEXT)
        results |= {letter.key: Result.FAILED for letter in embedded.refused}
        refused |= {letter.key: letter for letter in embedded.refused}
        await deps.mirrors.update(ids, roles)
        latest = await deps.index.refresh_roles()
    return results, [letter for letter in refused.values() if results[letter.key] is Result.FAILED]


async def _write(documents: Sequence[Document], collection: str, deps: Dependencies) -> EmbeddedDocuments:
    """Write what is newer than what a collection holds; "" stands for the first one, yet to be created."""
    ids = [document.id for document in documents]
    stored = await deps.index.points(collection).fetch(ids, with_embeddings=True) if collection else {}
    embedded = await embed_documents(
        [document for document in documents if not _is_stale(document, stored.get(document.id))],
        stored,
        deps.encoder,
        model=collection,
        timeout_seconds=deps.encode_timeout_seconds,
    )
    if embedded.documents:
        if not collection:
            await deps.index.prepare(embedded.model_id, embedded.embeddings.shape[1])
        await deps.index.upsert(embedded.documents, embedded.embeddings, model_id=embedded.model_id)
    return embedded


def _newest_of_each(documents: Sequence[Document]) -> dict[str, Document]:
    """By id; of equal versions the first, as in the index."""
    newest: dict[str, Document] = {}
    for document in documents:
        if document.id not in newest or newest[document.id].version < document.version:
            newest[document.id] = document
    return newest


async def _buried(newest: Mapping[str, Document], deps: Dependencies) -> dict[str, int]:
    """The tombstones that cover these versions, by document id."""
    tombstones = await deps.tombstones.get(newest)
    return {
        document_id: version
        for document_id, version in tombstones.items()
        if version >= newest[document_id].version
    }


def _is_stale(document: Document, stored: StoredDocument | None) -> bool:
    return stored is not None and stored.document.version >= document.version


async def _settle(newest: Mapping[str, Document], results: Mapping[str, Result], deps: Dependencies) -> None:
    """Nothing waits any more for these versions, and older failures of what did not fail no longer matter."""
    versions = {document_id: document.version for document_id, document in newest.items()}
    await deps.dead_letters.clear(
        {
            document_id: version
            for document_id, version in versions.items()
            if results[document_id] is not Result.FAILED
        }
    )
    await deps.pending.clear(versions)
