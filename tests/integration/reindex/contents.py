"""What a collection holds, to be compared with what it should."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from qdrant_client.conversions.common_types import PointId

from tests.integration.ingest.scripted_encoder import embedding_of
from textmatch.documents import Document
from textmatch.index.index import Index


async def contents(index: Index, collection: str) -> dict[str, Document]:
    """All documents by id; each must have the embedding that the collection's model gives its text."""
    found: dict[str, Document] = {}
    position: PointId | None = None
    while True:
        page = await index.points(collection).page(position)
        stored = await index.points(collection).fetch(page.versions, with_embeddings=True)
        for document_id, one in stored.items():
            assert document_id not in found
            assert one.embedding is not None
            assert np.allclose(one.embedding, embedding_of(one.document.text, collection)[0], atol=1e-5)
            found[document_id] = one.document
        position = page.next_position
        if position is None:
            return found


def by_id(documents: Iterable[Document]) -> dict[str, Document]:
    return {document.id: document for document in documents}
