"""Embedding documents for one collection, sparing those whose text it holds already."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from textmatch.documents import Document, text_hash
from textmatch.encoder_client import EncoderClient
from textmatch.errors import InvalidInput, reason_name
from textmatch.index.schema import StoredDocument
from textmatch.queue.dead_letters import DeadLetter, of_document
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
