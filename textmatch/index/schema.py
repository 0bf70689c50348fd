"""The schema of a collection: vectors, payload, payload indexes, and filters on attributes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from qdrant_client import AsyncQdrantClient, grpc, models
from qdrant_client.conversions.conversion import RestToGrpc

from textmatch.collection_config import PayloadIndex
from textmatch.documents import Document, Passage, content_hash, passage_point_id, point_id, text_hash
from textmatch.errors import InvalidInput
from textmatch.filters import (
    Condition,
    FieldExists,
    FieldIsNull,
    FieldMatch,
    FieldPrefix,
    FieldRange,
    FieldTimeRange,
    Filter,
    HasId,
    Value,
)
from textmatch.index.bm25 import document_vector
from textmatch.index.client import translated_errors
from textmatch.passages import EmbeddedPassages
from textmatch.vectors import Embeddings

DENSE_VECTOR = "dense"
LEXICAL_VECTOR = "bm25"
# Recall@100 is above 0.99 on 100,000 real texts; bench/LOG.md compares other settings.
HNSW = models.HnswConfigDiff(m=32, ef_construct=200)
# `hnsw_ef`, the candidates that a search of the graph keeps; twice the requested count if that is more.
MIN_HNSW_EF = 256
VERSION_FIELD = "version"
ACCEPTED_FIELD = "accepted_us"
# Of further passages only: the document's point, and its content hash. One list, so that one index has both.
PASSAGE_OF_FIELD = "passage_of"
# Of the point of a document with several passages: the whole text. Its `text` is the first passage.
WHOLE_TEXT_FIELD = "whole_text"
# Which part of the document `text` is; missing if there is only one.
PASSAGE_FIELD = "passage"
PASSAGE_COUNT_FIELD = "passage_count"
# Of documents of which the model has not read the end.
TRUNCATED_FIELD = "truncated"
IS_TRUNCATED = models.FieldCondition(key=TRUNCATED_FIELD, match=models.MatchValue(value=True))
# Of a document with several passages, the passage.
DOCUMENT_FIELDS = ["id", "text", "attributes", VERSION_FIELD, PASSAGE_FIELD]

_IndexSchema: TypeAlias = models.PayloadSchemaType | models.KeywordIndexParams

_ATTRIBUTES_PREFIX = "attributes."
# A part of a path that needs no quotes in Qdrant. [] stands for all elements of a list, [2] for one.
_PLAIN_PART = re.compile(r"[A-Za-z0-9_-]+(?:\[\d*\])*")
_ELEMENT = re.compile(r"\[\d+\]")
_KINDS = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "integer": models.PayloadSchemaType.INTEGER,
    "float": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.BOOL,
    "datetime": models.PayloadSchemaType.DATETIME,
}


@dataclass(frozen=True)
class StoredDocument:
    """A document as stored.

    Attributes:
        embedding: of its first passage, (dimension,); None if embeddings were not requested.
        passage_count: 1 if it is not divided.
        is_truncated: the model has not read the end of its text.
    """

    document: Document
    text_hash: str
    content_hash: str
    model_id: str
    embedding: Embeddings | None
    passage_count: int = 1
    is_truncated: bool = False


def document_points(*conditions: models.Condition) -> models.Filter:
    """The points of documents, without those of further passages, that meet all conditions."""
    own = models.IsEmptyCondition(is_empty=models.PayloadField(key=PASSAGE_OF_FIELD))
    return models.Filter(must=[own, *conditions])


def points_of(ids: Iterable[str]) -> models.Filter:
    """The points of these documents: of each one its own point, and those of its further passages."""
    points = [point_id(one) for one in ids]
    return models.Filter(should=[models.HasIdCondition(has_id=list(points)), passages_of(points)])


def passages_of(points: Iterable[str]) -> models.FieldCondition:
    """The further passages of the documents with these points."""
    return models.FieldCondition(key=PASSAGE_OF_FIELD, match=models.MatchAny(any=list(points)))


def dense_vector_params(dimension: int) -> dict[str, models.VectorParams]:
    """The embedding of a document, compared by cosine."""
    return {DENSE_VECTOR: models.VectorParams(size=dimension, distance=models.Distance.COSINE)}


def lexical_vector_params() -> dict[str, models.SparseVectorParams]:
    """The term frequencies of a document. Queries carry the inverse document frequency of their terms."""
    return {LEXICAL_VECTOR: models.SparseVectorParams()}


def to_point(
    document: Document,
    embedding: Embeddings,
    *,
    has_lexical: bool,
    passages: Sequence[Passage] = (),
    is_truncated: bool = False,
) -> models.PointStruct:
    """A document and its (dimension,) embedding as a point, for a collection with or without BM25.

    Args:
        passages: all of them, if there are several. The embedding is then that of the first one.
        is_truncated: the model has not read the end of the text.
    """
    payload = {
        "id": document.id,
        "text": document.text,
        "attributes": dict(document.attributes),
        VERSION_FIELD: document.version,
        ACCEPTED_FIELD: document.accepted_us,
        "text_hash": text_hash(document.text),
        "content_hash": content_hash(document),
    }
    if is_truncated:
        payload[TRUNCATED_FIELD] = True
    if passages:
        payload |= {
            "text": document.text[passages[0].start : passages[0].end],
            WHOLE_TEXT_FIELD: document.text,
            PASSAGE_FIELD: vars(passages[0]),
            PASSAGE_COUNT_FIELD: len(passages),
        }
    return _point(point_id(document.id), payload, embedding, has_lexical=has_lexical)


def to_passage_points(
    document: Document, embedded: EmbeddedPassages, *, has_lexical: bool
) -> Iterator[models.PointStruct]:
    """The further passages of a document, all but the first one, as points.

    They have the document's attributes, version and time of acceptance, so what selects the document by
    these selects them too.
    """
    document_point, revision_hash = point_id(document.id), content_hash(document)
    shared = {
        "id": document.id,
        "attributes": dict(document.attributes),
        VERSION_FIELD: document.version,
        ACCEPTED_FIELD: document.accepted_us,
        PASSAGE_OF_FIELD: [document_point, revision_hash],
    }
    further = zip(embedded.passages[1:], embedded.embeddings[1:], strict=True)
    for one, embedding in further:
        payload = shared | {"text": document.text[one.start : one.end], PASSAGE_FIELD: vars(one)}
        point = passage_point_id(document.id, document.version, revision_hash, one.number)
        yield _point(point, payload, embedding, has_lexical=has_lexical)


def _point(
    point: str, payload: dict[str, Any], embedding: Embeddings, *, has_lexical: bool
) -> models.PointStruct:
    vectors: dict[str, models.Vector] = {DENSE_VECTOR: embedding.tolist()}
    if has_lexical:
        vectors[LEXICAL_VECTOR] = document_vector(payload["text"])
    return models.PointStruct(id=point, vector=vectors, payload=payload)


def to_document(payload: dict[str, Any]) -> Document:
    """The document of a payload with at least DOCUMENT_FIELDS."""
    part = None if WHOLE_TEXT_FIELD in payload else payload.get(PASSAGE_FIELD)
    return Document(
        id=payload["id"],
        text=payload.get(WHOLE_TEXT_FIELD, payload["text"]),
        attributes=payload["attributes"],
        version=payload[VERSION_FIELD],
        accepted_us=payload.get(ACCEPTED_FIELD, 0),
        passage=Passage(**part) if part else None,
    )


def to_stored_document(record: models.Record, model_id: str) -> StoredDocument:
    """A record with its whole payload, from the collection of that model."""
    payload = record.payload or {}
    embedding = record.vector[DENSE_VECTOR] if isinstance(record.vector, dict) else None
    return StoredDocument(
        document=to_document(payload),
        text_hash=payload["text_hash"],
        content_hash=payload["content_hash"],
        model_id=model_id,
        embedding=None if embedding is None else np.asarray(embedding, dtype=np.float32),
        passage_count=payload.get(PASSAGE_COUNT_FIELD, 1),
        is_truncated=payload.get(TRUNCATED_FIELD, False),
    )


class PayloadIndexes:
    """Payload indexes of a collection: the attributes on which filters are fast, and those that deletes use.

    Every delete compares versions or times of acceptance, and finds the further passages of documents. In
    strict mode Qdrant refuses to do that without an index.

    Raises:
        InvalidInput: an attribute has an impossible path.
    """

    def __init__(self, indexes: Iterable[PayloadIndex]) -> None:
        own = (VERSION_FIELD, ACCEPTED_FIELD)
        self._schemas: dict[str, _IndexSchema] = dict.fromkeys(own, models.PayloadSchemaType.INTEGER)
        self._schemas[PASSAGE_OF_FIELD] = models.PayloadSchemaType.KEYWORD
        self._schemas[TRUNCATED_FIELD] = models.PayloadSchemaType.BOOL
        self._schemas |= {attribute_key(one.field): _index_schema(one) for one in indexes}

    def missing(self, existing: AbstractSet[str]) -> list[str]:
        """The keys of those that are not among the indexes that Qdrant lists."""
        # Qdrant lists keys without the quotes that it does not need.
        return [key for key in self._schemas if key not in existing and key.replace('"', "") not in existing]

    async def create(self, client: AsyncQdrantClient, collection: str, keys: Iterable[str]) -> None:
        """Create the indexes of these keys. Stored documents are indexed too. May be repeated."""
        async with translated_errors(collection):
            for key in keys:
                await client.create_payload_index(collection, key, field_schema=self._schemas[key], wait=True)


def _index_schema(index: PayloadIndex) -> _IndexSchema:
    if index.is_tenant:
        return models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
    return _KINDS[index.kind]


def to_grpc(condition: models.Filter) -> grpc.Filter:
    """The filter as a message, for requests that are built without the client's own models."""
    return RestToGrpc.convert_filter(condition)


def to_qdrant(condition: Filter) -> models.Filter:
    """A filter with its nested filters. An empty filter matches everything."""
    should = [_condition(child) for child in condition.should]
    several = None
    if condition.min_should > 1:
        several = models.MinShould(conditions=should, min_count=condition.min_should)
    return models.Filter(
        must=[_condition(child) for child in condition.must] or None,
        should=None if several else should or None,
        min_should=several,
        must_not=[_condition(child) for child in condition.must_not] or None,
    )


def attribute_key(field: str) -> str:
    """The payload path of an attribute. Names with spaces or letters beyond ASCII are quoted.

    Raises:
        InvalidInput: naming the field, if a part of its path is empty or contains a quote.
    """
    parts = field.split(".")
    if any(not part or '"' in part for part in parts):
        description = "must be parts joined by dots, none of them empty or with a double quote"
        raise InvalidInput.of_field(f"filter field {field!r}", description)
    quoted = (part if _PLAIN_PART.fullmatch(part) else f'"{part}"' for part in parts)
    return _ATTRIBUTES_PREFIX + ".".join(quoted)


def payload_selector(field: str) -> str:
    """The payload path to read an attribute: Qdrant reads all elements of a list, and not only the third."""
    return _ELEMENT.sub("[]", attribute_key(field))


def _condition(condition: Condition) -> models.Condition:
    match condition:
        case Filter():
            return to_qdrant(condition)
        case HasId(ids):
            return points_of(ids)
        case FieldMatch(field, values):
            return _match(attribute_key(field), values)
        case FieldRange(field, gt, gte, lt, lte):
            bounds = models.Range(gt=gt, gte=gte, lt=lt, lte=lte)
            return models.FieldCondition(key=attribute_key(field), range=bounds)
        case FieldTimeRange(field, gt, gte, lt, lte):
            times = models.DatetimeRange(gt=gt, gte=gte, lt=lt, lte=lte)
            return models.FieldCondition(key=attribute_key(field), range=times)
        case FieldPrefix(field, prefix):
            return models.FieldCondition(key=attribute_key(field), match=models.MatchPrefix(prefix=prefix))
        case FieldExists(field):
            is_empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=attribute_key(field)))
            return models.Filter(must_not=[is_empty])
        case FieldIsNull(field):
            return models.IsNullCondition(is_null=models.PayloadField(key=attribute_key(field)))


def _match(key: str, values: tuple[Value, ...]) -> models.Condition:
    """Qdrant's "any of" takes strings and integers, but neither booleans nor floats."""
    if not any(isinstance(value, (bool, float)) for value in values):
        return models.FieldCondition(key=key, match=models.MatchAny(any=list(values)))  # type: ignore[arg-type]
    return models.Filter(should=[_match_one(key, value) for value in values])


def _match_one(key: str, value: Value) -> models.FieldCondition:
    if isinstance(value, float):
        return models.FieldCondition(key=key, range=models.Range(gte=value, lte=value))
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))
