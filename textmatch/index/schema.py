"""What a collection looks like, and a document as a point in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import models

from textmatch.documents import Document, content_hash, point_id, text_hash
from textmatch.vectors import Embeddings

DENSE_VECTOR = "dense"
DOCUMENT_FIELDS = ["id", "text", "attributes", "version"]
VERSION_FIELD = "version"


@dataclass(frozen=True)
class StoredDocument:
    """A document as it stands in the index; `embedding` is (dimension,) or None if it was not asked for."""

    document: Document
    text_hash: str
    content_hash: str
    model_id: str
    embedding: Embeddings | None


@dataclass(frozen=True)
class Candidate:
    """A recalled document; `cosine` is -1..1."""

    document: Document
    cosine: float


def dense_vector_params(dimension: int) -> dict[str, models.VectorParams]:
    """One cosine vector a document."""
    return {DENSE_VECTOR: models.VectorParams(size=dimension, distance=models.Distance.COSINE)}


def to_point(document: Document, embedding: Embeddings) -> models.PointStruct:
    """A document and its (dimension,) embedding as a point."""
    payload = {
        "id": document.id,
        "text": document.text,
        "attributes": dict(document.attributes),
        "version": document.version,
        "text_hash": text_hash(document.text),
        "content_hash": content_hash(document),
    }
    return models.PointStruct(
        id=point_id(document.id), vector={DENSE_VECTOR: embedding.tolist()}, payload=payload
    )


def to_document(payload: dict[str, Any]) -> Document:
    """The document of a payload that holds at least DOCUMENT_FIELDS."""
    return Document(
        id=payload["id"],
        text=payload["text"],
        attributes=payload["attributes"],
        version=payload["version"],
    )


def to_stored_document(record: models.Record, model_id: str) -> StoredDocument:
    """A whole record of the collection of that model."""
    payload = record.payload or {}
    embedding = record.vector[DENSE_VECTOR] if isinstance(record.vector, dict) else None
    return StoredDocument(
        document=to_document(payload),
        text_hash=payload["text_hash"],
        content_hash=payload["content_hash"],
        model_id=model_id,
        embedding=None if embedding is None else np.asarray(embedding, dtype=np.float32),
    )
