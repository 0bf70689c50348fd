"""Embedding documents for one collection, sparing those whose text it holds already.

Making one collection hold what another one holds.

The collection in use is the *source*; the one being built, or the one kept for going back, is its *target*.
Three kinds of actors change both at the same time: workers write, deleters delete, and `textmatch reindex`
walks through the source. These rules keep the target equal, whatever overtakes what and whoever dies:

1. *Versions decide.* Qdrant itself refuses a write that is not newer than what is stored, and a delete names
   the version up to which it goes. So actors who still take the one collection for the other, because
   the aliases have just been changed, can do no harm.
2. *Tombstones last.* A deleter leaves a tombstone before it deletes anywhere. Whoever has copied looks for
   tombstones after the copy is durable, and removes what they cover. A tombstone that comes later is
   followed by the deleter's own deletes, which find the copy. That a document is missing in the source
   proves nothing while workers write: it may be on its way there.
3. *Asked again before it is acknowledged.* Workers and deleters read the aliases when everything they did is
   durable. If they are not what they were, all is done once more for those that hold now. The walk starts
   after the alias of the target is set. So of each change one holds: it was made in the source before the
   alias was set, and the walk finds its outcome; or the aliases, asked again, had the target in them, and
   it was made there too. The same covers a switch between two readings.
4. *A target is complete or has no role.* A worker that cannot write to a target any more takes its role away
   before it acknowledges (workers/indexer.py); nobody can then put it to use until another walk has
   completed it.
5. *What was deleted while the target had no role* has to be found by looking. Workers write to the source
   before the target. So a version that the target had while it was being built, and that the source, read
   later, has not, was deleted; only one that a worker wrote by aliases of long ago looks the same. The walk
   removes it and then copies that document once more: if the worker has come to the source meanwhile, the
   copy brings it back; if not, the worker comes to the target later still.

A worker or a walker that dies has acknowledged nothing and noted nothing: the message comes again, and the
next walk looks at every document of both collections. One walk at a time: rule 5 relies on the target not
being put to use during it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from textmatch.documents import Document, text_hash
from textmatch.encoder_client import EncoderClient
from textmatch.errors import InvalidInput, reason_name
from textmatch.index.index import Index
from textmatch.index.points import CollectionPoints
from textmatch.index.schema import StoredDocument
from textmatch.queue.dead_letters import DeadLetter, of_document
from textmatch.queue.tombstones import Tombstones
from textmatch.vectors import Embeddings

_TEXT_FIELD = re.compile(r"texts\[(\d+)\]")


@dataclass(frozen=True)
class EmbeddedDocuments:
    """Documents with their (count, dimension) embeddings, all by `model_id`; (0, 0) if there are none.

    Args:
        reused: ids of those whose embedding was stored for the same text.
        refused: those that the model cannot embed, which are not among `documents`.
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
    """Embed documents in the bulk lane.

    Args:
        stored: what the model's collection holds of them, with embeddings.
        model: as EncoderClient.encode takes it.

    Raises:
        ModelMismatch: the model is not served.
        TextMatchError: nothing can be embedded now.
    """
    reused = [one for one in documents if _has_text_of(stored.get(one.id), one)]
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


def _has_text_of(stored: StoredDocument | None, document: Document) -> bool:
    """Encoding the text again would give the same."""
    return stored is not None and stored.text_hash == text_hash(document.text)


def _letters_by_position(error: InvalidInput, documents: Sequence[Document]) -> dict[int, DeadLetter]:
    """A dead letter for each text that the error names.

    Raises:
        InvalidInput: it names anything else, so that no document in particular is at fault.
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


@dataclass
class Copied:
    """What a copy changed in the target, and what its model cannot embed, by document id."""

    written: int = 0
    removed: int = 0
    refused: dict[str, DeadLetter] = field(default_factory=dict)


class Copier:
    """Copies by the rules above; every method may be repeated."""

    def __init__(
        self, index: Index, encoder: EncoderClient, tombstones: Tombstones, encode_timeout_seconds: float
    ) -> None:
        self._index = index
        self._encoder = encoder
        self._tombstones = tombstones
        self._encode_timeout_seconds = encode_timeout_seconds

    async def copy(self, ids: Sequence[str], *, source: str, target: str) -> Copied:
        """Make the target hold what the source holds of these documents, at most a few hundred.

        Raises:
            ModelMismatch: the model of the target is not served.
            CollectionGone: one of the two is.
            TextMatchError: it must be tried again.
        """
        points = self._index.points(target)
        wanted = await self._index.points(source).fetch(ids)
        held = await points.fetch(ids, with_embeddings=True)
        missing = [
            found.document
            for document_id, found in wanted.items()
            if document_id not in held or held[document_id].document.version < found.document.version
        ]
        embedded = await embed_documents(
            missing, held, self._encoder, model=target, timeout_seconds=self._encode_timeout_seconds
        )
        if embedded.documents:
            await self._index.upsert(embedded.documents, embedded.embeddings, model_id=target)
        refused = {letter.key: letter for letter in embedded.refused}
        # An older version of a document that cannot be embedded is not what the source holds.
        outdated = {one.key: one.document.version for one in refused.values() if one.document}
        buried = await self._buried(embedded.documents)
        removed = await points.delete(outdated | buried)
        return Copied(len(embedded.documents), removed, refused)

    async def remove_lost(self, versions: Mapping[str, int], *, source: str, target: str) -> Copied:
        """Remove from the target, which is being built, what the source holds no more.

        Args:
            versions: what the target held while it was being built.
        """
        left = await self._index.points(source).versions(versions)
        lost = {one: version for one, version in versions.items() if left.get(one, 0) < version}
        if not lost:
            return Copied()
        removed = await self._index.points(target).delete(lost)
        copied = await self.copy(list(lost), source=source, target=target)
        return replace(copied, removed=copied.removed + removed)

    async def _buried(self, documents: Sequence[Document]) -> dict[str, int]:
        """The tombstones that cover these, by document id."""
        versions = {document.id: document.version for document in documents}
        tombstones = await self._tombstones.get(versions)
        return {one: version for one, version in tombstones.items() if version >= versions[one]}


async def missing_ids(page: Mapping[str, int], target: CollectionPoints) -> list[str]:
    """Those of the source's versions that the target lacks or has older."""
    held = await target.versions(page)
    return [document_id for document_id, version in page.items() if held.get(document_id, 0) < version]
