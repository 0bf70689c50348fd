"""Write a batch of documents of one collection to the model in use and to its dual-write targets.

Deletes race with writes. A delete first adds a tombstone and then deletes. `index_documents` looks up
tombstones before it writes and again once the write is durable:

* The second lookup finds a tombstone that was added before it, and the document is removed.
* A tombstone added later is followed by the delete itself, which finds the document.

A worker that dies between the write and the second lookup has not acknowledged its message, and the next
worker finds the tombstone at its first lookup. Therefore every document that a tombstone covers is removed,
not only those just written. A removal names the tombstone's version and spares newer ones.

Deletes that were queued among documents keep the same order: tombstone, then delete. The matcher adds the
tombstone when it accepts the delete. Other senders do not, and an old one may have expired. Therefore the
worker adds it again. A redelivered delete covers what its first delivery covered. A delete without a version
also removes the stored document if that was accepted before it; the matcher may not have known its version.
This version gets a tombstone first, so that a repeated delete removes it from every replica. Deletes are
settled before the writes of their batch, and need no encoder.

Deletes by a filter also apply to documents that were accepted before and still queued. They are written
first, and Qdrant then evaluates the filter on them as on all others. Each match gets a tombstone of its own
version, which blocks older versions and spares newer ones that do not match.

Dual writes keep a second collection equal to the one in use while the model is being changed, by the rules
in textmatch/indexing.py. If the encoder does not serve the target's model, batches are retried for a while,
because other encoders may serve it. Then the target loses its role, and ingest continues without it until
`textmatch reindex` completes it.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from textmatch.collection_roles import CollectionRole, Roles
from textmatch.collection_store import Collection
from textmatch.documents import Document
from textmatch.encoder_client import EncoderClient
from textmatch.errors import DependencyUnavailable, InvalidInput, ModelMismatch, StoreMisconfigured
from textmatch.filters import Filter, HasId
from textmatch.index.client import CollectionGone
from textmatch.index.index import Index
from textmatch.index.points import DeleteCondition
from textmatch.indexing import (
    Copier,
    EmbeddedDocuments,
    embed_documents,
    may_be_divided,
    needs_write,
    write_documents,
)
from textmatch.queue.dead_letters import DeadLetter
from textmatch.queue.tombstones import Tombstone
from workers import metrics

_log = logging.getLogger(__name__)

_PROBE_TEXT = "probe"


class DocumentOutcome(Enum):
    """The outcome of a document; the values are labels of a metric."""

    INDEXED = "indexed"
    # Written with the stored embedding of the same text. A redelivered version counts here too.
    UNCHANGED_TEXT = "unchanged_text"
    # A newer version, or other content with the same version, is stored or in the same batch.
    STALE = "stale"
    # A delete that was applied, or a write that a tombstone covers.
    DELETED = "deleted"
    # In the dead letters.
    FAILED = "failed"
    # Its collection was deleted.
    DROPPED = "dropped"


@dataclass(frozen=True)
class IndexerDependencies:
    """The dependencies of `index_documents` for the documents of one collection."""

    collection: Collection
    encoder: EncoderClient
    dual_writer: DualWriter
    encode_timeout_seconds: float
    tombstone_seconds: int


async def index_documents(documents: Sequence[Document], deps: IndexerDependencies) -> list[DocumentOutcome]:
    """Settle every document; returns their outcomes in order. May be repeated with the same documents.

    Raises:
        CollectionNotFound: the collection was deleted.
        TextMatchError: nothing is settled; the whole batch must be tried again.
    """
    collection = deps.collection
    await _apply_deletes([one for one in documents if one.deleted], deps)
    writes = [one for one in documents if not one.deleted]
    newest = _newest_of_each(writes)
    if not newest:
        return [DocumentOutcome.DELETED] * len(documents)
    covering = await collection.tombstones.covering(newest.values())
    to_write = [document for document in newest.values() if document.id not in covering]
    outcomes, refused = await _write_everywhere(to_write, list(newest), deps)
    covering |= await collection.tombstones.covering(newest.values())
    deleted = await _versions_to_remove(newest, covering, deps)
    written = {
        one: document
        for one, document in newest.items()
        if one not in covering and outcomes[one] is not DocumentOutcome.FAILED
    }
    deleted |= await _apply_filter_deletes(written, deps)
    await collection.index.delete(deleted)
    # Passages of a write that ended before its document was stored may be newer than its tombstone.
    unwritten = [newest[one] for one in covering]
    # So may those of older versions in the batch, whose writes ended before. The newest one may have none.
    unwritten += [document for document in writes if newest[document.id] is not document]
    await collection.index.delete_outdated_passages([one for one in unwritten if may_be_divided(one)])
    deleted |= dict.fromkeys(covering, 0)
    outcomes |= dict.fromkeys(deleted, DocumentOutcome.DELETED)

    await collection.dead_letters.add(refused)
    versions = {document.id: document.version for document in newest.values()}
    not_failed = {
        one: version for one, version in versions.items() if outcomes[one] != DocumentOutcome.FAILED
    }
    await collection.dead_letters.clear(not_failed)
    await collection.pending.clear(versions)

    def outcome(document: Document) -> DocumentOutcome:
        if document.deleted:
            return DocumentOutcome.DELETED
        return outcomes[document.id] if newest[document.id] is document else DocumentOutcome.STALE

    return [outcome(document) for document in documents]


async def _apply_deletes(deletes: Sequence[Document], deps: IndexerDependencies) -> None:
    """Settle deletes that were queued among documents."""
    if not deletes:
        return
    collection = deps.collection
    own: dict[str, Tombstone] = {}
    for document in deletes:
        own[document.id] = own.get(document.id, Tombstone(0, 0)) | Tombstone.of(document)
    await collection.tombstones.add_all(own, deps.tombstone_seconds)
    # There may be later ones, which are then applied too.
    tombstones = own | await collection.tombstones.get(own)
    versions = {one: tombstone.version for one, tombstone in tombstones.items()}
    by_time = {
        one: found.version
        for one, found in (await collection.index.fingerprints(list(tombstones))).items()
        if found.version > versions[one] and tombstones[one].covers(found.version, found.accepted_us)
    }
    await collection.tombstones.add(by_time, deps.tombstone_seconds)
    versions |= by_time
    await collection.index.delete({one: version for one, version in versions.items() if version})
    # The version that was read may not be that of every replica.
    ids_by_time: defaultdict[int, list[str]] = defaultdict(list)
    for one, tombstone in tombstones.items():
        if tombstone.accepted_us:
            ids_by_time[tombstone.accepted_us].append(one)
    for accepted_us, ids in ids_by_time.items():
        everything = Filter(must=(HasId(tuple(ids)),))
        await collection.index.delete_matching(DeleteCondition(everything, accepted_until=accepted_us))
    await collection.dead_letters.clear(versions)
    await collection.pending.clear(versions)


async def probe_encoder(deps: IndexerDependencies) -> None:
    """Embed a text that is known to be harmless, as `index_documents` embeds the texts of documents.

    Raises:
        TextMatchError: it cannot be embedded.
    """
    model = await deps.collection.index.model_in_use() or deps.collection.config.bi_encoder
    await deps.encoder.encode(
        [_PROBE_TEXT],
        is_query=False,
        is_bulk=True,
        timeout_seconds=deps.encode_timeout_seconds,
        model=model,
    )


def _newest_of_each(documents: Sequence[Document]) -> dict[str, Document]:
    """By id; the first one of equal versions, as in the index."""
    newest: dict[str, Document] = {}
    for document in documents:
        if document.id not in newest or newest[document.id].version < document.version:
            newest[document.id] = document
    return newest


async def _write_everywhere(
    documents: Sequence[Document], ids: Sequence[str], deps: IndexerDependencies
) -> tuple[dict[str, DocumentOutcome], list[DeadLetter]]:
    """Write documents to the collection in use, then make its targets equal to it for all `ids`."""
    outcomes = dict.fromkeys(ids, DocumentOutcome.STALE)
    refused: dict[str, DeadLetter] = {}
    collections = deps.collection.index.collections
    roles, latest = None, await collections.roles()
    while roles != latest:
        embedded, roles = await _write(documents, latest, deps)
        for document in embedded.documents:
            if document.id not in embedded.reused:
                outcomes[document.id] = DocumentOutcome.INDEXED
            # A repeated round sends documents that the previous round has written.
            elif outcomes[document.id] != DocumentOutcome.INDEXED:
                outcomes[document.id] = DocumentOutcome.UNCHANGED_TEXT
        outcomes |= {letter.key: DocumentOutcome.FAILED for letter in embedded.refused}
        refused |= {letter.key: letter for letter in embedded.refused}
        await deps.dual_writer.update(ids, roles)
        latest = await collections.refresh_roles()
    return outcomes, [one for one in refused.values() if outcomes[one.key] is DocumentOutcome.FAILED]


async def _write(
    documents: Sequence[Document], roles: Roles, deps: IndexerDependencies
) -> tuple[EmbeddedDocuments, Roles]:
    """Write the documents that the index in use needs; makes the index of the first model if there is none.

    Returns:
        Also the roles. They have changed if the index was made.
    """
    index, model_id = deps.collection.index, roles.in_use
    ids = [document.id for document in documents]
    stored = {}
    if model_id:
        stored = await index.points(model_id).fetch(ids, with_embeddings=True, is_whole=False)
    embedded = await embed_documents(
        [document for document in documents if needs_write(document, stored.get(document.id))],
        stored,
        deps.encoder,
        config=deps.collection.config,
        model=model_id or deps.collection.config.bi_encoder,
        timeout_seconds=deps.encode_timeout_seconds,
    )
    if not model_id:
        if not embedded.documents:
            # Nothing is stored yet, and a model that has written nothing is not in use.
            return embedded, roles
        await index.collections.prepare(embedded.model_id, embedded.embeddings.shape[1])
        # The documents are written to this model. If another one is in use by then, they are written again.
        roles = replace(await index.collections.refresh_roles(), in_use=embedded.model_id)
    await write_documents(index, documents, stored, embedded)
    passages = sum(len(one.passages) - 1 for one in embedded.passages.values())
    metrics.PASSAGES_TOTAL.inc(len(embedded.documents) + passages)
    metrics.TRUNCATED_TOTAL.inc(len(embedded.truncated))
    return embedded, roles


async def _versions_to_remove(
    documents: Mapping[str, Document], covering: Mapping[str, Tombstone], deps: IndexerDependencies
) -> dict[str, int]:
    """Up to which version documents under a tombstone are to be removed from the index, by id.

    A document that is covered by its time alone may have a higher version than one that was accepted after
    the delete. Therefore what is stored decides.
    """
    versions = {one: tombstone.version for one, tombstone in covering.items()}
    by_time = [one for one, tombstone in covering.items() if documents[one].version > tombstone.version]
    for one, stored in (await deps.collection.index.fingerprints(by_time)).items():
        if covering[one].covers(stored.version, stored.accepted_us):
            versions[one] = max(versions[one], stored.version)
    return {one: version for one, version in versions.items() if version}


async def _apply_filter_deletes(
    documents: Mapping[str, Document], deps: IndexerDependencies
) -> dict[str, int]:
    """Add tombstones for the documents that a delete by filter covers; returns their versions by id.

    Only deletes that came after a document was accepted can cover it, so documents that are indexed soon cost
    nothing, however many deletes there were. Documents that waited cost a search for some dozens of deletes.

    Args:
        documents: that are stored, or newer versions of them.

    Raises:
        DependencyUnavailable: a delete that is running has removed one of them.
    """
    tombstones, index = deps.collection.tombstones, deps.collection.index
    deleted: dict[str, int] = {}
    if not documents:
        return deleted
    oldest = min(document.accepted_us for document in documents.values())
    async for page in tombstones.filters.after(oldest - 1):
        last_us = max(one.accepted_us for one in page)
        possible = [one.id for one in documents.values() if one.accepted_us <= last_us]
        if not possible:
            continue
        conditions = [DeleteCondition(one.condition, one.version, one.accepted_us) for one in page]
        try:
            found = await index.find_versions_of(possible, conditions)
        except InvalidInput as error:
            # Qdrant accepted the filter when the delete was made, so its settings have changed since.
            message = f"the filter of a delete cannot be applied: {error}"
            raise StoreMisconfigured(message, retry_delay_seconds=1.0) from error
        left = set(possible) - found.keys()
        if left - (await index.fingerprints(list(left))).keys():
            # It has no tombstone, so an older version could be restored. Written again, it gets one.
            raise DependencyUnavailable("a delete by a filter is running", retry_delay_seconds=0.1)
        await tombstones.add(found, max(one.ttl_seconds for one in page))
        deleted |= found
    return deleted


class DualWriter:
    """Makes dual-write targets equal to the model in use; shared by all batches of a collection in a worker.

    Args:
        unserved_seconds: how long a target's model may be unserved before the target loses its role.
    """

    def __init__(self, index: Index, copier: Copier, unserved_seconds: float) -> None:
        self._index = index
        self._name = index.collections.config.name
        self._copier = copier
        self._unserved_seconds = unserved_seconds
        # The time of a target's first failed write, on the monotonic clock, by collection.
        self._failing_since: dict[str, float] = {}

    async def update(self, ids: Sequence[str], roles: Roles) -> None:
        """Make the targets equal to the collection in use for these documents.

        Raises:
            ModelMismatch: a target's model is not served, and the batch may be tried again.
            TextMatchError: the batch must be tried again.
        """
        metrics.ABANDONED_COLLECTIONS.labels(self._name).set(1 if roles.abandoned else 0)
        for role in (CollectionRole.NEXT, CollectionRole.PREVIOUS):
            if roles.of(role):
                await self._update(ids, role, roles)

    async def _update(self, ids: Sequence[str], role: CollectionRole, roles: Roles) -> None:
        source, target = roles.in_use, roles.of(role)
        try:
            copied = await self._copier.copy(ids, source=source, target=target)
        except CollectionGone:
            await self._index.collections.forget_missing(roles, target)
            raise
        except ModelMismatch as error:
            since = self._failing_since.setdefault(target, time.monotonic())
            if time.monotonic() - since < self._unserved_seconds:
                raise
            await self._index.roles.abandon(role)
            _log.error(
                "collection abandoned: its model is not served",
                extra={"model_id": target, "error": str(error)},
            )
            return
        for letter in copied.refused.values():
            _log.warning(
                "document not copied to the dual-write target",
                extra={"document_id": letter.key, "model_id": target, "error": letter.error},
            )
        self._failing_since.pop(target, None)
