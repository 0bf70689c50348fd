"""Embed documents, and copy them from one collection to another. Workers and `textmatch reindex` share it.

While the model is being changed there are two collections. The *source* is in use. The *target* is being
built, or is kept for a rollback. Workers write, clients delete, and `textmatch reindex` copies, all at the
same time. Six rules keep the target equal to the source:

1. *Versions decide.* Qdrant refuses a write that is not newer than the stored version, and a delete names
   the highest version it removes. Processes that still confuse the two collections after a switch do no harm.
2. *Equal versions are sent again.* A write that too few replicas applied fails, but stays on the replicas
   that applied it, and the next read may come from one of those. See `needs_write`.
3. *Tombstones outlast the copy.* A delete adds a tombstone before it removes anything. A copier looks up
   tombstones once its copy is durable, and removes the documents they cover. A tombstone added later is
   followed by the delete itself, which finds the copy. A document that is missing in the source proves
   nothing: its write may still be in progress.
4. *Roles are read again before the acknowledgement.* Workers and deleters read the roles of the collections
   again once their changes are durable, and repeat the changes if the roles have changed. A node of a cluster
   may answer with the roles of a moment ago. The sync therefore starts some seconds after the target has its
   role, when every node knows it. Each change was either acknowledged before, and the sync finds it in the
   source, or its process sees the target and makes the change there too. A switch between two reads loses
   nothing, because the collections of the old and of the new roles are the same two. The nodes agree on a
   switch: it fails if the target has lost its role.
5. *A target is complete or has no role.* A worker that cannot write to a target removes its role before it
   acknowledges (workers/indexer.py). The target cannot be used until another sync has completed it.
6. *Deletes made while the target had no role are found by comparing.* Workers write to the source before the
   target. Suppose the target had a version while it was being built, and a later read of the source does not
   find it. Then it was deleted, or written by a worker with outdated roles. The sync removes it and copies
   the document again. If the worker has written to the source by then, the copy restores the document; if
   not, the worker writes to the target later.

A worker or a sync that dies has acknowledged nothing: the message is delivered again, and the next sync
compares every document. Only one sync may run at a time, because the target must not be switched to during
rule 6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from textmatch.documents import Document, content_hash, text_hash
from textmatch.encoder_client import EncoderClient
from textmatch.errors import InvalidInput, reason_name
from textmatch.index.index import Index
from textmatch.index.schema import StoredDocument
from textmatch.queue.dead_letters import DeadLetter, of_document
from textmatch.queue.tombstones import Tombstones
from textmatch.vectors import Embeddings

_TEXT_FIELD = re.compile(r"texts\[(\d+)\]")


@dataclass(frozen=True)
class EmbeddedDocuments:
    """Documents and their (count, dimension) embeddings by `model_id`; (0, 0) if there are none.

    Args:
        reused: ids of the documents whose stored embedding was reused.
        refused: dead letters of the texts that the model cannot embed; `documents` does not contain them.
    """

    documents: list[Document]
    embeddings: Embeddings
    model_id: str
    reused: frozenset[str]
    refused: list[DeadLetter]


async def embed_documents(
    documents: Sequence[Document],
    stored: Mapping[str, StoredDocument],
    encoder: EncoderClient,
    *,
    model: str,
    timeout_seconds: float,
) -> EmbeddedDocuments:
    """Embed documents in the bulk lane, except those whose text is stored already.

    Args:
        stored: the same documents in the model's collection, with embeddings.
        model: as for EncoderClient.encode.

    Raises:
        ModelMismatch: the model is not served.
        TextMatchError: nothing can be embedded now.
    """
    reused = [
        one for one in documents if one.id in stored and stored[one.id].text_hash == text_hash(one.text)
    ]
    reused_ids = frozenset(document.id for document in reused)
    remaining = [document for document in documents if document.id not in reused_ids]
    rows = [stored[document.id].embedding for document in reused]
    refused: list[DeadLetter] = []
    model_id = model
    while remaining:
        try:
            encoded = await encoder.encode(
                [document.text for document in remaining],
                is_query=False,
                is_bulk=True,
                timeout_seconds=timeout_seconds,
                model=model,
            )
        except InvalidInput as error:
            faults = _letters_by_position(error, remaining)
            refused += faults.values()
            remaining = [one for position, one in enumerate(remaining) if position not in faults]
        else:
            rows.extend(encoded.embeddings)
            model_id = encoded.model_id
            break
    embeddings = np.stack([row for row in rows if row is not None]) if rows else np.empty((0, 0), np.float32)
    return EmbeddedDocuments([*reused, *remaining], embeddings, model_id, reused_ids, refused)


def _letters_by_position(error: InvalidInput, documents: Sequence[Document]) -> dict[int, DeadLetter]:
    """A dead letter for each text that the error names, by its position.

    Raises:
        InvalidInput: the error names something other than a text.
    """
    letters: dict[int, DeadLetter] = {}
    for violation in error.violations:
        named = _TEXT_FIELD.fullmatch(violation.field)
        if named is None or int(named[1]) >= len(documents):
            raise error
        position = int(named[1])
        reason = reason_name(violation.reason)
        letters[position] = of_document(documents[position], reason, f"the text {violation.description}")
    return letters


def needs_write(document: Document, stored: StoredDocument | None) -> bool:
    """Whether a document must be sent to a collection: it is newer than the stored version, or equal to it.

    On a replicated Qdrant, a write that too few replicas applied fails, but stays on those that applied it,
    and nothing repairs the others. The retry may read from a replica that applied it, and must send it again.
    The update condition stays "older than": a replica that has the version ignores the repeated write, which
    costs no indexing, and a replica that lacks it or has an older one applies it.

    Different content with the same version is not sent: the first one stays, as within one batch.
    """
    if stored is None or stored.document.version < document.version:
        return True
    return stored.document.version == document.version and stored.content_hash == content_hash(document)


@dataclass
class CopyResult:
    """Changes of a copy in the target, and the documents that its model cannot embed, by document id."""

    written: int = 0
    removed: int = 0
    refused: dict[str, DeadLetter] = field(default_factory=dict)


class Copier:
    """Copies documents by the rules above. Every method may be repeated."""

    def __init__(
        self, index: Index, encoder: EncoderClient, tombstones: Tombstones, encode_timeout_seconds: float
    ) -> None:
        self._index = index
        self._encoder = encoder
        self._tombstones = tombstones
        self._encode_timeout_seconds = encode_timeout_seconds

    async def copy(self, ids: Sequence[str], *, source: str, target: str) -> CopyResult:
        """Make the target equal to the source for these documents, a few hundred at most.

        Raises:
            ModelMismatch: the model of the target is not served.
            CollectionGone: one of the two collections was dropped.
            TextMatchError: the copy must be repeated.
        """
        points = self._index.points(target)
        wanted = await self._index.points(source).fetch(ids)
        held = await points.fetch(ids, with_embeddings=True)
        embedded = await embed_documents(
            [one.document for one in wanted.values() if needs_write(one.document, held.get(one.document.id))],
            held,
            self._encoder,
            model=target,
            timeout_seconds=self._encode_timeout_seconds,
        )
        if embedded.documents:
            await self._index.upsert(embedded.documents, embedded.embeddings, model_id=target)
        refused = {letter.key: letter for letter in embedded.refused}
        # The target may hold an older version of a document that its model cannot embed.
        outdated = {one.key: one.document.version for one in refused.values() if one.document}
        covered = await self._tombstones.covering(embedded.documents)
        deleted = {one.id: one.version for one in embedded.documents if one.id in covered}
        removed = await self._index.delete_from(target, outdated | deleted)
        written = [one for one in embedded.documents if one.version > _version(held, one.id)]
        return CopyResult(len(written), removed, refused)

    async def remove_deleted(self, versions: Mapping[str, int], *, source: str, target: str) -> CopyResult:
        """Remove documents from the target, which is being built, that the source no longer has.

        Args:
            versions: of documents in the target, read while it was being built.
        """
        left = await self._index.points(source).versions(versions)
        deleted = {one: version for one, version in versions.items() if left.get(one, 0) < version}
        if not deleted:
            return CopyResult()
        removed = await self._index.delete_from(target, deleted)
        copied = await self.copy(list(deleted), source=source, target=target)
        return replace(copied, removed=copied.removed + removed)


def _version(stored: Mapping[str, StoredDocument], document_id: str) -> int:
    return stored[document_id].document.version if document_id in stored else 0
