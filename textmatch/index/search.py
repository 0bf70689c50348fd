"""Searches in one collection: nearest embeddings, BM25, or both, and reads of the points found.

Messages are built without the client's own models: creating an object for every query and point takes longer
than the search. Errors of Qdrant are translated by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import AsyncQdrantClient, grpc, models
from qdrant_client.conversions.common_types import PointId
from qdrant_client.conversions.conversion import RestToGrpc, grpc_to_payload

from textmatch.documents import Document
from textmatch.filters import Filter
from textmatch.index.bm25 import query_vector
from textmatch.index.schema import (
    DENSE_VECTOR,
    DOCUMENT_FIELDS,
    LEXICAL_VECTOR,
    MIN_HNSW_EF,
    to_document,
    to_qdrant,
)
from textmatch.vectors import Embeddings

_TIMEOUT_SECONDS = 60.0
_DOCUMENT_PAYLOAD = grpc.WithPayloadSelector(include=grpc.PayloadIncludeSelector(fields=DOCUMENT_FIELDS))


@dataclass(frozen=True)
class SearchQuery:
    """A (dimension,) embedding for dense search, a text for BM25, or both for hybrid search.

    Attributes:
        count: hits of each kind of search; hybrid search finds up to twice as many.
        fuse_ranks: also fuse the ranks of both kinds by reciprocal rank fusion.
        with_documents: return the documents with the hits, which saves a second call.
    """

    count: int
    embedding: Embeddings | None = None
    text: str = ""
    condition: Filter | None = None
    fuse_ranks: bool = False
    with_documents: bool = False


@dataclass(frozen=True)
class Hit:
    """A point that was found.

    Attributes:
        cosine: -1..1; 0 if the query had no embedding.
        bm25: from 0 up; None if the query had no text.
        fused_ranks: 1 for a point that is first in both searches; None if ranks were not fused.
        document: None if documents were not requested.
    """

    point: PointId
    cosine: float
    bm25: float | None = None
    fused_ranks: float | None = None
    document: Document | None = None


async def search(client: AsyncQdrantClient, collection: str, query: SearchQuery) -> list[Hit]:
    """The hits of a query, in no particular order."""
    requests = _requests(collection, query)
    if not requests:
        return []
    message = grpc.QueryBatchPoints(collection_name=collection, query_points=requests)
    answer = await client.grpc_points.QueryBatch(message, timeout=_TIMEOUT_SECONDS)
    found = [{point.id.uuid: point.score for point in one.result} for one in answer.result]
    documents = {point.id.uuid: _document(point) for point in answer.result[0].result if query.with_documents}
    fused = found[2] if len(found) > 2 else {}
    return [
        Hit(point, *_scores(query, point, found), fused.get(point), documents.get(point))
        for point in found[0]
    ]


def _scores(
    query: SearchQuery, point: PointId, found: Sequence[Mapping[PointId, float]]
) -> tuple[float, float | None]:
    """Cosine and BM25."""
    score = found[0][point]
    if query.embedding is None:
        return 0.0, score
    if len(found) == 1:
        return score, 0.0 if query.text else None
    return score, found[1].get(point, 0.0)


async def read_documents(
    client: AsyncQdrantClient, collection: str, points: Sequence[PointId]
) -> dict[PointId, Document]:
    """The documents of these points that are still stored."""
    if not points:
        return {}
    message = grpc.GetPoints(
        collection_name=collection,
        ids=[grpc.PointId(uuid=str(point)) for point in points],
        with_payload=_DOCUMENT_PAYLOAD,
    )
    answer = await client.grpc_points.Get(message, timeout=_TIMEOUT_SECONDS)
    return {record.id.uuid: _document(record) for record in answer.result}


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


def _requests(collection: str, query: SearchQuery) -> list[grpc.QueryPoints]:
    """One request for each score. In hybrid search each request scores the hits of both searches."""
    terms = query_vector(query.text) if query.text else models.SparseVector(indices=[], values=[])
    searches = []
    if query.embedding is not None:
        searches.append(_dense(query.embedding, query))
    if terms.indices:
        searches.append(_lexical(terms, query))
    shared: dict[str, Any] = {
        "collection_name": collection,
        "with_payload": _DOCUMENT_PAYLOAD if query.with_documents else None,
    }
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
    requests = [grpc.QueryPoints(query=one.query, using=one.using, **shared) for one in searches]
    if query.fuse_ranks:
        requests.append(grpc.QueryPoints(query=grpc.Query(fusion=grpc.Fusion.RRF), **shared))
    return requests


def _dense(embedding: Embeddings, query: SearchQuery) -> grpc.PrefetchQuery:
    vector = grpc.VectorInput(dense=grpc.DenseVector(data=embedding.tolist()))
    return grpc.PrefetchQuery(
        query=grpc.Query(nearest=vector),
        using=DENSE_VECTOR,
        filter=_filter(query),
        limit=query.count,
        params=grpc.SearchParams(hnsw_ef=max(MIN_HNSW_EF, 2 * query.count)),
    )


def _lexical(terms: models.SparseVector, query: SearchQuery) -> grpc.PrefetchQuery:
    vector = grpc.VectorInput(sparse=grpc.SparseVector(indices=terms.indices, values=terms.values))
    return grpc.PrefetchQuery(
        query=grpc.Query(nearest=vector), using=LEXICAL_VECTOR, filter=_filter(query), limit=query.count
    )


def _filter(query: SearchQuery) -> grpc.Filter | None:
    return RestToGrpc.convert_filter(to_qdrant(query.condition)) if query.condition else None


def _document(point: grpc.ScoredPoint | grpc.RetrievedPoint) -> Document:
    return to_document(grpc_to_payload(point.payload))
