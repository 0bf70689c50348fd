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
   from Redis once their changes are durable, and repeat the changes if the epoch is another one. All changes
   of roles are steps of one record (textmatch/collection_roles.py). So the second read comes either before
   the target got its role, and the sync, which starts later, finds the change in the source; or after it, and
   the change has been made in the target too. What Qdrant's nodes know of aliases has no part in this. A node
   that does not know the target yet refuses the change, which is repeated: only a collection that has lost
   its role is left out. A switch between two reads loses nothing, because the collections of the old and of
   the new roles are the same two. A switch fails if the target has lost its role.
5. *A target is complete or has no role.* A worker that cannot write to a target removes its role before it
   acknowledges (workers/indexer.py). The target cannot be used until another sync has completed it. The
   same holds for a target that may lack writes because Redis went back to older roles.
6. *Deletes made while the target had no role are found by comparing.* Workers write to the source before the
   target. Suppose the target had a version while it was being built, and a later read of the source does not
   find it. Then it was deleted, or written by a worker with outdated roles. The sync removes it and copies
   the document again. If the worker has written to the source by then, the copy restores the document; if
   not, the worker writes to the target later.

A document whose text is longer than the model reads has several *passages*. The point of the document has the
first one, the whole text, the version and the number of passages. Each further passage is a point of its own,
with a copy of attributes, version and time of acceptance: filters and deletes select it with its document.
Its id comes from the document's id, version and content, so versions never overwrite each other's passages.
A write takes three steps:

1. Write the further passages.
2. Write the document, if it is newer. This is the commit: searches count a passage only if the document has
   its version and content (textmatch/index/search.py). The same request deletes the further passages of lower
   versions. An older document may have got some since the worker read what is stored.
3. Delete the further passages that are outdated: of lower versions than that of the stored document, or of
   other content with the same version. Passages of higher versions are spared, because their document may be
   written next.

The message is acknowledged after the third step. A process that dies before the commit leaves the old
document as it was, one that dies after it the new one, and the repeated write removes what is left. A write
that loses at the commit, because a newer version is stored, removes its own passages in the third step. So
does a message that is delivered again and found to be outdated: it writes nothing, and takes the third step
only. Deletes select the points of documents by a filter, and so remove all passages up to their version. If
a delete comes between the first and the second step, the worker finds its tombstone afterwards and deletes
what it has written (workers/indexer.py). The first and the third step are left out where neither the stored
nor the new document has several passages.

A worker or a sync that dies has acknowledged nothing: the message is delivered again, and the next sync
compares every document. Only one sync may run at a time, because the target must not be switched to during
rule 6. What rule 4 supposes: a master of Redis that was replaced answers no more, and a collection that was
dropped is not built again until all nodes of Qdrant know that it was dropped, which takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from textmatch.collection_config import MIN_PASSAGE_TOKENS, CollectionConfig
from textmatch.documents import MAX_TEXT_BYTES, Document, content_hash, text_hash
from textmatch.encoder_client import EncoderClient
from textmatch.errors import InvalidInput, reason_name
from textmatch.index.index import Index
from textmatch.index.schema import StoredDocument
from textmatch.passages import (
    MAX_PASSAGE_CHARACTERS,
    MAX_TAKEN,
    DividedText,
    EmbeddedPassages,
    EncodedPassage,
    Span,
)
from textmatch.queue.dead_letters import DeadLetter, of_document
from textmatch.queue.tombstones import Tombstones
from textmatch.vectors import Embeddings

# Of a large text, and of several texts together.
_PASSAGES_PER_CALL = 32

_TEXT_FIELD = re.compile(r"texts\[(\d+)\]")


@dataclass(frozen=True)
class EmbeddedDocuments:
    """Documents and their (count, dimension) embeddings by `model_id`; (0, 0) if there are none.

    Args:
        reused: ids of the documents whose stored embedding was reused.
        refused: dead letters of the texts that the model cannot embed; `documents` does not contain them.
        passages: of the documents that have several, by document id. Their embedding is that of the first.
        truncated: ids of the documents of which the model has not read all.
    """

    documents: list[Document]
    embeddings: Embeddings
    model_id: str
    reused: frozenset[str]
    refused: list[DeadLetter]
    passages: Mapping[str, EmbeddedPassages] = field(default_factory=dict)
    truncated: frozenset[str] = frozenset()


class DocumentEmbedding:
    """Embeds the texts of a batch of documents, dividing the long ones.

    Attributes:
        model_id: the model that was used; the one that was asked for, if nothing was embedded.
        rows: the (dimension,) embedding of each document, by its id; of its first passage if it has several.
        refused: by document id, as the others.
    """

    def __init__(
        self, encoder: EncoderClient, config: CollectionConfig, model: str, timeout_seconds: float
    ) -> None:
        self._encoder = encoder
        self._config = config
        self._model = model
        self._timeout_seconds = timeout_seconds
        self.model_id = model
        self.rows: dict[str, Embeddings] = {}
        self.passages: dict[str, EmbeddedPassages] = {}
        self.truncated: set[str] = set()
        self.refused: dict[str, DeadLetter] = {}

    async def run(self, documents: Sequence[Document]) -> None:
        """Embed documents. A text that fits into a passage costs nothing more than a whole one.

        Of longer texts the encoder reads the beginning first. Its answer tells which texts are long, and how
        many tokens the model reads.
        """
        most = self._config.passage_tokens
        beginnings = [(one, _beginning(one.text, is_divided=most > 0)) for one in documents]
        divided: list[tuple[Document, DividedText]] = []
        for (document, text), encoded in zip(beginnings, await self._encode(beginnings), strict=True):
            if encoded is None:
                continue
            is_cut = encoded.is_truncated or len(text) < len(document.text)
            if most and (is_cut or encoded.token_count > most):
                # A model that has read the whole beginning may read less than `most`. It says so.
                max_tokens = min(encoded.token_count, most) if encoded.is_truncated else most
                parts = await DividedText.of(document.text, max_tokens, self._config.passage_overlap)
                divided.append((document, parts))
            else:
                self._put(document.id, encoded.row, is_truncated=is_cut)
        await self._embed_passages(divided)

    async def _embed_passages(self, divided: Sequence[tuple[Document, DividedText]]) -> None:
        """Passages of several documents share calls, and those of a large one take many."""
        unfinished = list(divided)
        while unfinished:
            batch: list[tuple[Document, DividedText, Span]] = []
            for one in list(unfinished):
                taken = one[1].take()
                batch += [(*one, span) for span in taken]
                if len(batch) > _PASSAGES_PER_CALL - MAX_TAKEN:
                    break
                if not taken:
                    unfinished.remove(one)
            texts = [(document, document.text[span.start : span.end]) for document, _, span in batch]
            for (_, parts, span), encoded in zip(batch, await self._encode(texts), strict=True):
                if encoded is not None:
                    parts.put(span, encoded)
            unfinished = [one for one in unfinished if one[0].id not in self.refused]
        for document, parts in divided:
            if document.id not in self.refused:
                embedded = parts.embedded()
                self._put(document.id, embedded.embeddings[0], is_truncated=parts.is_truncated)
                if len(embedded.passages) > 1:
                    self.passages[document.id] = embedded

    def _put(self, document_id: str, row: Embeddings, *, is_truncated: bool) -> None:
        self.rows[document_id] = row
        if is_truncated:
            self.truncated.add(document_id)

    async def _encode(self, texts: Sequence[tuple[Document, str]]) -> list[EncodedPassage | None]:
        """Embed texts of documents; None for the texts of documents that the model refuses."""
        while remaining := [one for one in texts if one[0].id not in self.refused]:
            try:
                encoded = await self._encoder.encode(
                    [text for _, text in remaining],
                    is_query=False,
                    is_bulk=True,
                    timeout_seconds=self._timeout_seconds,
                    model=self._model,
                )
            except InvalidInput as error:
                letters = _letters_by_position(error, [document for document, _ in remaining])
                self.refused |= {letter.key: letter for letter in letters.values()}
            else:
                self.model_id = encoded.model_id
                rows = iter(zip(encoded.embeddings, encoded.token_counts, encoded.truncated, strict=True))
                return [
                    EncodedPassage(*next(rows)) if document.id not in self.refused else None
                    for document, _ in texts
                ]
        return [None] * len(texts)


def _beginning(text: str, *, is_divided: bool) -> str:
    """As much of a text as the encoder reads at once."""
    if is_divided or len(text) <= MAX_PASSAGE_CHARACTERS:
        return text[:MAX_PASSAGE_CHARACTERS]
    return text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")


async def embed_documents(
    documents: Sequence[Document],
    stored: Mapping[str, StoredDocument],
    encoder: EncoderClient,
    *,
    config: CollectionConfig,
    model: str,
    timeout_seconds: float,
) -> EmbeddedDocuments:
    """Embed documents in the bulk lane, except those whose text is stored already as one passage.

    Args:
        stored: the same documents in the model's collection, with embeddings.
        config: how long texts are divided.
        model: as for EncoderClient.encode.
        timeout_seconds: of each call.

    Raises:
        ModelMismatch: the model is not served.
        TextMatchError: nothing can be embedded now.
    """
    rows = {
        one.id: row
        for one in documents
        if (found := stored.get(one.id)) is not None
        and found.passage_count == 1
        and found.text_hash == text_hash(one.text)
        and (row := found.embedding) is not None
    }
    reused_ids = frozenset(rows)
    embedding = DocumentEmbedding(encoder, config, model, timeout_seconds)
    await embedding.run([document for document in documents if document.id not in reused_ids])
    rows |= embedding.rows
    embedded = [document for document in documents if document.id in rows]
    return EmbeddedDocuments(
        embedded,
        np.stack([rows[one.id] for one in embedded]) if embedded else np.empty((0, 0), np.float32),
        embedding.model_id,
        reused_ids,
        list(embedding.refused.values()),
        embedding.passages,
        frozenset(embedding.truncated) | {one for one in reused_ids if stored[one].is_truncated},
    )


def _letters_by_position(error: InvalidInput, documents: Sequence[Document]) -> dict[int, DeadLetter]:
    """A dead letter for each text that the error names, by its position.

    Args:
        documents: that of each text.

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


async def write_documents(
    index: Index,
    documents: Sequence[Document],
    stored: Mapping[str, StoredDocument],
    embedded: EmbeddedDocuments,
) -> None:
    """Write embedded documents, and remove outdated passages, in the order that is explained above.

    Args:
        documents: those of `embedded`, and versions that are not written.
        stored: what was stored of them before.
    """
    if embedded.documents:
        await index.upsert(
            embedded.documents,
            embedded.embeddings,
            model_id=embedded.model_id,
            passages=embedded.passages,
            truncated=embedded.truncated,
        )
    written = {one.id for one in embedded.documents}
    divided = [
        one
        for one in documents
        if one.id in embedded.passages
        or (one.id in stored and stored[one.id].passage_count > 1)
        # An earlier attempt to write it may have left passages.
        or (one.id not in written and may_be_divided(one))
    ]
    if divided:
        await index.points(embedded.model_id).delete_outdated_passages(divided)


def may_be_divided(document: Document) -> bool:
    """Whether a document may have several passages: a token has at least one byte."""
    return len(document.text.encode()) >= MIN_PASSAGE_TOKENS


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
        held = await points.fetch(ids, with_embeddings=True, is_whole=False)
        embedded = await embed_documents(
            [one.document for one in wanted.values() if needs_write(one.document, held.get(one.document.id))],
            held,
            self._encoder,
            config=self._index.collections.config,
            model=target,
            timeout_seconds=self._encode_timeout_seconds,
        )
        await write_documents(
            self._index, [one.document for one in wanted.values()], held, replace(embedded, model_id=target)
        )
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
