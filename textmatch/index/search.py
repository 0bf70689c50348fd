"""Searches in one collection: nearest embeddings, BM25, or both, and reads of points.

Messages are built without the client's own models: creating an object for every query and point takes longer
than the search. Errors of Qdrant are translated by the caller.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import AsyncQdrantClient, grpc, models
from qdrant_client.conversions.common_types import PointId
from qdrant_client.conversions.conversion import grpc_to_payload

from textmatch.documents import Document, document_key, is_passage_point, point_id
from textmatch.filters import Filter
from textmatch.index.bm25 import QueryVector
from textmatch.index.schema import (
    DENSE_VECTOR,
    DOCUMENT_FIELDS,
    LEXICAL_VECTOR,
    MIN_HNSW_EF,
    PASSAGE_FIELD,
    PASSAGE_OF_FIELD,
    VERSION_FIELD,
    document_points,
    passages_of,
    payload_selector,
    to_document,
    to_grpc,
    to_qdrant,
)
from textmatch.index.term_statistics import SAMPLE_DOCUMENTS, TermStatistics
from textmatch.time_slices import in_slices
from textmatch.vectors import Embeddings

_TIMEOUT_SECONDS = 60.0
# Small, because parsing a page blocks other calls.
_SAMPLE_PAGE = 500
_DOCUMENTS_PAGE = 100
# How often it is searched for more documents, without those that have been found.
_MAX_ROUNDS = 5


def _payload(fields: Sequence[str]) -> grpc.WithPayloadSelector:
    return grpc.WithPayloadSelector(include=grpc.PayloadIncludeSelector(fields=fields))


_DOCUMENT_PAYLOAD = _payload(DOCUMENT_FIELDS)
_REVISION_PAYLOAD = _payload([VERSION_FIELD, "content_hash"])
_PASSAGE_REVISION_PAYLOAD = _payload([PASSAGE_OF_FIELD, VERSION_FIELD])


@dataclass(frozen=True)
class SearchQuery:
    """A (dimension,) embedding for dense search, terms for BM25, or both for hybrid search.

    Attributes:
        count: documents of each kind of search; hybrid search finds up to twice as many.
        with_documents: return the documents with the hits, which saves a second call.
        group_by: also return the value of the attribute with this path; "": none.
    """

    count: int
    embedding: Embeddings | None = None
    terms: QueryVector | None = None
    condition: Filter | None = None
    with_documents: bool = False
    group_by: str = ""


@dataclass(frozen=True)
class Hit:
    """A point that was found.

    Attributes:
        cosine: -1..1; None if the query had no embedding.
        lexical: the evidence of shared terms, 0..1; None if the query had no terms.
        document: None if documents were not requested.
        group: the value of the attribute that was requested, as JSON; None if the document has none.
    """

    point: PointId
    cosine: float | None = None
    lexical: float | None = None
    document: Document | None = None
    group: str | None = None


async def search(client: AsyncQdrantClient, collection: str, query: SearchQuery) -> list[Hit]:
    """The hits of a query, in no particular order. A document may be hit in several passages.

    Passages of one document may be all that a search finds. It is then repeated without the documents that
    have been found, until `count` documents are found or there are no more. A collection without documents
    of several passages needs one search and no reads.

    A passage counts only if the point of its document has the same version and content. It may have others:
    the passages of a new version are written before, and those of an old one removed after (`upsert`).
    """
    hits = await _search(client, collection, query)
    is_last = len(hits) < query.count
    owner_of = await _current_passages(client, collection, hits)
    found = _current(hits, owner_of)
    for _ in range(_MAX_ROUNDS - 1):
        missing_count = query.count - len({document_key(str(hit.point)) for hit in found})
        if is_last or missing_count <= 0:
            break
        owners = set(owner_of.values())
        points = models.HasIdCondition(has_id=[*(str(hit.point) for hit in hits), *owners])
        seen = models.Filter(must_not=[points, passages_of(owners)] if owners else [points])
        more = await _search(client, collection, replace(query, count=missing_count), seen)
        is_last = len(more) < missing_count
        owner_of |= await _current_passages(client, collection, more)
        hits += more
        found += _current(more, owner_of)
    return found


def _current(hits: Sequence[Hit], owner_of: Mapping[PointId, str]) -> list[Hit]:
    """The hits of documents, and those of their current passages."""
    return [hit for hit in hits if not is_passage_point(str(hit.point)) or hit.point in owner_of]


async def _current_passages(
    client: AsyncQdrantClient, collection: str, hits: Sequence[Hit]
) -> dict[PointId, str]:
    """The points of the documents of those hits that are further passages of a document's stored version."""
    points = [str(hit.point) for hit in hits if is_passage_point(str(hit.point))]
    if not points:
        return {}
    passages = await _read(client, collection, points, _PASSAGE_REVISION_PAYLOAD)
    owners = sorted({payload[PASSAGE_OF_FIELD][0] for payload in passages.values()})
    documents = await _read(client, collection, owners, _REVISION_PAYLOAD)
    revisions = {(point, one["content_hash"], one[VERSION_FIELD]) for point, one in documents.items()}
    return {
        point: one[PASSAGE_OF_FIELD][0]
        for point, one in passages.items()
        if (*one[PASSAGE_OF_FIELD], one[VERSION_FIELD]) in revisions
    }


async def _read(
    client: AsyncQdrantClient, collection: str, points: Sequence[str], payload: grpc.WithPayloadSelector
) -> dict[PointId, dict[str, Any]]:
    message = grpc.GetPoints(
        collection_name=collection, ids=[grpc.PointId(uuid=one) for one in points], with_payload=payload
    )
    answer = await client.grpc_points.Get(message, timeout=_TIMEOUT_SECONDS)
    return {record.id.uuid: grpc_to_payload(record.payload) for record in answer.result}


async def _search(
    client: AsyncQdrantClient, collection: str, query: SearchQuery, seen: models.Filter | None = None
) -> list[Hit]:
    """One search, without what has been seen."""
    documents_come_along = query.with_documents and query.count <= _DOCUMENTS_PAGE
    requests = _requests(collection, replace(query, with_documents=documents_come_along), seen)
    if not requests:
        return []
    message = grpc.QueryBatchPoints(collection_name=collection, query_points=requests)
    answer = await client.grpc_points.QueryBatch(message, timeout=_TIMEOUT_SECONDS)
    found = [{point.id.uuid: point.score for point in one.result} for one in answer.result]
    documents: dict[PointId, Document] = {}
    if documents_come_along:
        documents = {point.id.uuid: _document(point) async for point in in_slices(answer.result[0].result)}
    elif query.with_documents:
        documents = await read_documents(client, collection, list(found[0]))
    groups: dict[PointId, str | None] = {}
    if query.group_by and documents:
        groups = {point: _group(one.attributes, query.group_by) for point, one in documents.items()}
    elif query.group_by:
        groups = {
            point.id.uuid: _group(grpc_to_payload(point.payload).get("attributes"), query.group_by)
            async for point in in_slices(answer.result[0].result)
        }
    return [
        Hit(point, *_scores(query, point, found), documents.get(point), groups.get(point))
        for point in found[0]
    ]


def _group(attributes: Any, path: str) -> str | None:
    """The value at a path as JSON; None if it is missing or null."""
    value = attributes
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value is None else json.dumps(value, sort_keys=True)


def _scores(
    query: SearchQuery, point: PointId, found: Sequence[Mapping[PointId, float]]
) -> tuple[float | None, float | None]:
    """Cosine and lexical evidence."""
    cosine = found[0][point] if query.embedding is not None else None
    if query.terms is None:
        return cosine, None
    return cosine, query.terms.lexical(found[-1].get(point, 0.0))


async def read_documents(
    client: AsyncQdrantClient, collection: str, points: Sequence[PointId]
) -> dict[PointId, Document]:
    """The documents of these points that are still stored; of those with several passages, the passage."""
    documents: dict[PointId, Document] = {}
    for start in range(0, len(points), _DOCUMENTS_PAGE):
        page = points[start : start + _DOCUMENTS_PAGE]
        message = grpc.GetPoints(
            collection_name=collection,
            ids=[grpc.PointId(uuid=str(point)) for point in page],
            with_payload=_DOCUMENT_PAYLOAD,
        )
        answer = await client.grpc_points.Get(message, timeout=_TIMEOUT_SECONDS)
        documents |= {record.id.uuid: _document(record) async for record in in_slices(answer.result)}
    return documents


async def read_documents_after(
    client: AsyncQdrantClient,
    collection: str,
    condition: Filter,
    after: str,
    count: int,
    fields: Sequence[str] = DOCUMENT_FIELDS,
) -> list[Document]:
    """Up to `count` documents that match, in the order of their point ids; fewer at the end only.

    Args:
        after: the id of a document, stored or not; those after it are read. "": from the first one on.
        fields: which of DOCUMENT_FIELDS to read; the others are empty. The text of a document with several
            passages is the first one.
    """
    message = grpc.ScrollPoints(
        collection_name=collection,
        filter=to_grpc(document_points(to_qdrant(condition))),
        # The document of the offset comes first, if it is stored and matches.
        limit=count + bool(after),
        offset=grpc.PointId(uuid=point_id(after)) if after else None,
        with_payload=_payload([*fields, PASSAGE_FIELD] if "text" in fields else fields),
    )
    answer = await client.grpc_points.Scroll(message, timeout=_TIMEOUT_SECONDS)
    empty = {"text": "", "attributes": {}}
    payloads = [grpc_to_payload(record.payload) async for record in in_slices(answer.result)]
    found = [to_document(empty | payload) for payload in payloads]
    return [one for one in found if one.id != after][:count]


async def read_embeddings(
    client: AsyncQdrantClient, collection: str, points: Sequence[PointId]
) -> Mapping[PointId, Embeddings]:
    """The (dimension,) embeddings of the points that are still stored."""
    records = await client.retrieve(collection, points, with_payload=False, with_vectors=[DENSE_VECTOR])
    return {
        record.id: np.asarray(record.vector[DENSE_VECTOR], dtype=np.float32)
        for record in records
        if isinstance(record.vector, dict)
    }


async def read_term_statistics(client: AsyncQdrantClient, collection: str) -> TermStatistics:
    """Count the terms of the first passages in the order of their point ids.

    They are what BM25 finds, so their number counts, and not that of the documents.
    """
    documents: list[NDArray[np.uint32]] = []
    offset: grpc.PointId | None = None
    while len(documents) < SAMPLE_DOCUMENTS:
        message = grpc.ScrollPoints(
            collection_name=collection,
            limit=min(_SAMPLE_PAGE, SAMPLE_DOCUMENTS - len(documents)),
            offset=offset,
            with_payload=grpc.WithPayloadSelector(enable=False),
            with_vectors=grpc.WithVectorsSelector(include=grpc.VectorsSelector(names=[LEXICAL_VECTOR])),
        )
        answer = await client.grpc_points.Scroll(message, timeout=_TIMEOUT_SECONDS)
        documents += [_term_indices(point) for point in answer.result]
        if not answer.HasField("next_page_offset"):
            break
        offset = answer.next_page_offset
    return TermStatistics.of(documents)


def _term_indices(point: grpc.RetrievedPoint) -> NDArray[np.uint32]:
    vector = point.vectors.vectors.vectors[LEXICAL_VECTOR]
    # Older servers fill the deprecated fields only.
    indices = vector.sparse.indices if vector.HasField("sparse") else vector.indices.data
    return np.array(indices, dtype=np.uint32)


def _requests(
    collection: str, query: SearchQuery, seen: models.Filter | None = None
) -> list[grpc.QueryPoints]:
    """One request for each score. In hybrid search each request scores the hits of both searches."""
    searches = []
    conditions = [to_qdrant(query.condition)] if query.condition else []
    conditions += [seen] if seen else []
    condition = to_grpc(models.Filter(must=[*conditions])) if conditions else None
    if query.embedding is not None:
        searches.append(_dense(query.embedding, query, condition))
    if query.terms is not None:
        searches.append(_lexical(query.terms, query, condition))
    payload = _DOCUMENT_PAYLOAD if query.with_documents else None
    if query.group_by and not query.with_documents:
        fields = [payload_selector(query.group_by)]
        payload = grpc.WithPayloadSelector(include=grpc.PayloadIncludeSelector(fields=fields))
    shared: dict[str, Any] = {"collection_name": collection, "with_payload": payload}
    if len(searches) < 2:
        return [
            grpc.QueryPoints(
                query=one.query,
                using=one.using,
                filter=one.filter if one.HasField("filter") else None,
                params=one.params if one.HasField("params") else None,
                limit=one.limit,
                **shared,
            )
            for one in searches
        ]
    shared |= {"prefetch": searches, "limit": 2 * query.count}
    return [grpc.QueryPoints(query=one.query, using=one.using, **shared) for one in searches]


def _dense(embedding: Embeddings, query: SearchQuery, condition: grpc.Filter | None) -> grpc.PrefetchQuery:
    vector = grpc.VectorInput(dense=grpc.DenseVector(data=embedding.tolist()))
    return grpc.PrefetchQuery(
        query=grpc.Query(nearest=vector),
        using=DENSE_VECTOR,
        filter=condition,
        limit=query.count,
        params=grpc.SearchParams(hnsw_ef=max(MIN_HNSW_EF, 2 * query.count)),
    )


def _lexical(terms: QueryVector, query: SearchQuery, condition: grpc.Filter | None) -> grpc.PrefetchQuery:
    vector = grpc.VectorInput(sparse=grpc.SparseVector(indices=terms.indices, values=terms.values))
    return grpc.PrefetchQuery(
        query=grpc.Query(nearest=vector), using=LEXICAL_VECTOR, filter=condition, limit=query.count
    )


def _document(point: grpc.ScoredPoint | grpc.RetrievedPoint) -> Document:
    return to_document(grpc_to_payload(point.payload))
