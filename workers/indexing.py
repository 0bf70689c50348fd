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
second look; textmatch/reindexing/copying.py says why nothing is missing then after a change of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from textmatch.documents import Document
from textmatch.encoder_client import EncoderClient
from textmatch.index.schema import StoredDocument
from textmatch.index.store import Index
from textmatch.queue.dead_letters import DeadLetter, DeadLetters
from textmatch.queue.pending import Pending
from textmatch.queue.tombstones import Tombstones
from textmatch.reindexing.embedding import EmbeddedDocuments, embed_documents
from workers.filter_deletes import bury_by_filters
from workers.mirrors import Mirrors


@dataclass(frozen=True)
class Dependencies:
    """What the pipeline works with."""

    encoder: EncoderClient
    index: Index
    mirrors: Mirrors
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
