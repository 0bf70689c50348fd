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
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from textmatch.documents import Document, text_hash
from textmatch.encoder_client import EncoderClient
from textmatch.errors import InvalidInput, reason_name
from textmatch.index.schema import StoredDocument
from textmatch.index.store import Index
from textmatch.queue.dead_letters import DeadLetter, DeadLetters, of_document
from textmatch.queue.pending import Pending
from textmatch.queue.tombstones import Tombstones
from textmatch.vectors import Embeddings

_TEXT_FIELD = re.compile(r"texts\[(\d+)\]")


@dataclass(frozen=True)
class Dependencies:
    """What the pipeline works with."""

    encoder: EncoderClient
    index: Index
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


@dataclass(frozen=True)
class Embedded:
    """Documents with their (count, dimension) embeddings, all by the model `model_id`."""

    documents: list[Document]
    embeddings: Embeddings
    model_id: str


async def index_documents(documents: Sequence[Document], deps: Dependencies) -> list[Result]:
    """Settle every document; the results are in their order. May be repeated with the same documents.

    Raises:
        TextMatchError: nothing is settled for good; the whole batch must be tried again.
    """
    newest = _newest_of_each(documents)
    buried = await _buried(newest, deps)
    stored = await deps.index.fetch(list(newest), with_embeddings=True)
    results = dict.fromkeys(newest, Result.STALE)

    to_write = [
        document
        for document in newest.values()
        if document.id not in buried and not _is_stale(document, stored.get(document.id))
    ]
    reused = _with_stored_embeddings(to_write, stored)
    results |= dict.fromkeys(reused, Result.UNCHANGED_TEXT)
    encoded, refused = await _encode([one for one in to_write if one.id not in reused], deps)
    if encoded:
        results |= {document.id: Result.INDEXED for document in encoded.documents}
    results |= {letter.key: Result.FAILED for letter in refused}

    await _write(reused, encoded, deps)
    buried |= await _buried(newest, deps)
    await deps.index.delete(buried)
    results |= dict.fromkeys(buried, Result.DELETED)

    await deps.dead_letters.add(refused)
    await _settle(newest, results, deps)
    return [results[one.id] if newest[one.id] is one else Result.STALE for one in documents]


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


def _with_stored_embeddings(
    documents: Sequence[Document], stored: Mapping[str, StoredDocument]
) -> dict[str, tuple[Document, StoredDocument]]:
    """The documents whose text is stored already, by id: encoding it again would give the same."""
    return {
        document.id: (document, stored[document.id])
        for document in documents
        if document.id in stored and stored[document.id].text_hash == text_hash(document.text)
    }


async def _encode(
    documents: Sequence[Document], deps: Dependencies
) -> tuple[Embedded | None, list[DeadLetter]]:
    """Embed documents in one call. If the encoder names texts at fault, the others are embedded without
    them."""
    refused: list[DeadLetter] = []
    remaining = list(documents)
    while remaining:
        try:
            encoded = await deps.encoder.encode(
                [document.text for document in remaining],
                is_query=False,
                is_bulk=True,
                timeout_seconds=deps.encode_timeout_seconds,
                model=await deps.index.collection(),
            )
        except InvalidInput as error:
            faults = _letters_by_position(error, remaining)
            refused += faults.values()
            remaining = [one for position, one in enumerate(remaining) if position not in faults]
        else:
            return Embedded(remaining, encoded.embeddings, encoded.model_id), refused
    return None, refused


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


async def _write(
    reused: Mapping[str, tuple[Document, StoredDocument]], encoded: Embedded | None, deps: Dependencies
) -> None:
    if encoded:
        await deps.index.prepare(encoded.model_id, encoded.embeddings.shape[1])
        await deps.index.upsert(encoded.documents, encoded.embeddings, model_id=encoded.model_id)
    if reused:
        by_stored = _of_one_model(reused)
        await deps.index.upsert(by_stored.documents, by_stored.embeddings, model_id=by_stored.model_id)


def _of_one_model(reused: Mapping[str, tuple[Document, StoredDocument]]) -> Embedded:
    """They were read from one collection, which belongs to one model."""
    pairs = list(reused.values())
    return Embedded(
        documents=[document for document, _ in pairs],
        embeddings=np.stack([stored.embedding for _, stored in pairs if stored.embedding is not None]),
        model_id=pairs[0][1].model_id,
    )


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
