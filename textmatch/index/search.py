"""Recall: the nearest documents by embedding, by shared words, or by both.

Our filters as Qdrant's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from qdrant_client import AsyncQdrantClient, grpc, models
from qdrant_client.conversions.common_types import PointId
from qdrant_client.conversions.conversion import RestToGrpc, grpc_to_payload

from textmatch.documents import Document
from textmatch.filters import Filter
from textmatch.index.bm25 import query_vector
from textmatch.index.client import translated_errors
from textmatch.index.schema import DENSE_VECTOR, DOCUMENT_FIELDS, LEXICAL_VECTOR, to_document, to_qdrant
from textmatch.vectors import Embeddings

# Candidates that the graph looks at; see bench/RESULTS.md for what it gives.
_MIN_SEARCH_WIDTH = 256
_LONGEST_SECONDS = 60.0
_DOCUMENT_PAYLOAD = grpc.WithPayloadSelector(include=grpc.PayloadIncludeSelector(fields=DOCUMENT_FIELDS))


@dataclass(frozen=True)
class SearchQuery:
    """What to look for: an (dimension,) embedding, a text whose words count, or both.

    With both, `count` are looked for each way, so that up to twice as many are found; `fuse_ranks` then also
    fuses their ranks. `with_documents` has the documents come along, which spares a second call.
    """

    count: int
    embedding: Embeddings | None = None
    text: str = ""
    condition: Filter | None = None
    fuse_ranks: bool = False
    with_documents: bool = False


@dataclass(frozen=True)
class Hit:
    """A recalled point: cosine -1..1 (0 if there was no embedding), BM25 from 0 up (None without a text).

    `fused_ranks` is 1 for what is first both ways, and None if ranks were not fused; `document` is None if it
    was not asked for.
    """

    point: PointId
    cosine: float
    bm25: float | None = None
    fused_ranks: float | None = None
    document: Document | None = None


async def recall(client: AsyncQdrantClient, collection: str, query: SearchQuery) -> list[Hit]:
    """What is found, in no particular order.

    Raises:
        CollectionGone: there is no such collection.
    """
    requests = _requests(collection, query)
    if not requests:
        return []
    message = grpc.QueryBatchPoints(collection_name=collection, query_points=requests)
    async with translated_errors(collection):
        # The client's own method makes objects of every query and point, which takes longer than the search.
        answer = await client.grpc_points.QueryBatch(message, timeout=_LONGEST_SECONDS)
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
    """The documents that are still stored.

    Raises:
        CollectionGone: there is no such collection.
    """
    if not points:
        return {}
    message = grpc.GetPoints(
        collection_name=collection,
        ids=[grpc.PointId(uuid=str(point)) for point in points],
        with_payload=_DOCUMENT_PAYLOAD,
    )
    async with translated_errors(collection):
        answer = await client.grpc_points.Get(message, timeout=_LONGEST_SECONDS)
    return {record.id.uuid: _document(record) for record in answer.result}


async def read_embeddings(
    client: AsyncQdrantClient, collection: str, points: Sequence[PointId]
) -> Mapping[PointId, Embeddings]:
    """The (dimension,) embeddings of the points that are still stored.

    Raises:
        CollectionGone: there is no such collection.
    """
    async with translated_errors(collection):
        records = await client.retrieve(collection, points, with_payload=False, with_vectors=[DENSE_VECTOR])
    return {
        record.id: np.asarray(record.vector[DENSE_VECTOR], dtype=np.float32)
        for record in records
        if isinstance(record.vector, dict)
    }


def _requests(collection: str, query: SearchQuery) -> list[grpc.QueryPoints]:
    """One for each score; with both, each scores what either finds."""
    terms = query_vector(query.text) if query.text else models.SparseVector(indices=[], values=[])
    searches = []
    if query.embedding is not None:
        searches.append(_dense(query.embedding, query))
    if terms.indices:
        searches.append(_lexical(terms, query))
    if len(searches) < 2:
        return [_alone(collection, search, query) for search in searches]
    both = [_rescored(collection, searches, search.query, search.using, query) for search in searches]
    if query.fuse_ranks:
        by_ranks = grpc.Query(fusion=grpc.Fusion.RRF)
        both.append(_rescored(collection, searches, by_ranks, "", query))
    return both


def _rescored(
    collection: str,
    searches: Sequence[grpc.PrefetchQuery],
    scored_by: grpc.Query,
    using: str,
    query: SearchQuery,
) -> grpc.QueryPoints:
    """What any of the searches finds, scored by one of them or by all ranks."""
    return grpc.QueryPoints(
        collection_name=collection,
        prefetch=searches,
        query=scored_by,
        using=using or None,
        limit=2 * query.count,
        with_payload=_DOCUMENT_PAYLOAD if query.with_documents else None,
    )


def _dense(embedding: Embeddings, query: SearchQuery) -> grpc.PrefetchQuery:
    vector = grpc.VectorInput(dense=grpc.DenseVector(data=embedding.tolist()))
    return grpc.PrefetchQuery(
        query=grpc.Query(nearest=vector),
        using=DENSE_VECTOR,
        filter=_filter(query),
        limit=query.count,
        params=grpc.SearchParams(hnsw_ef=max(_MIN_SEARCH_WIDTH, 2 * query.count)),
    )


def _lexical(terms: models.SparseVector, query: SearchQuery) -> grpc.PrefetchQuery:
    vector = grpc.VectorInput(sparse=grpc.SparseVector(indices=terms.indices, values=terms.values))
    return grpc.PrefetchQuery(
        query=grpc.Query(nearest=vector), using=LEXICAL_VECTOR, filter=_filter(query), limit=query.count
    )


def _alone(collection: str, search: grpc.PrefetchQuery, query: SearchQuery) -> grpc.QueryPoints:
    return grpc.QueryPoints(
        collection_name=collection,
        query=search.query,
        using=search.using,
        filter=search.filter if search.HasField("filter") else None,
        params=search.params if search.HasField("params") else None,
        limit=search.limit,
        with_payload=_DOCUMENT_PAYLOAD if query.with_documents else None,
    )


def _filter(query: SearchQuery) -> grpc.Filter | None:
    return RestToGrpc.convert_filter(to_qdrant(query.condition)) if query.condition else None


def _document(point: grpc.ScoredPoint | grpc.RetrievedPoint) -> Document:
    return to_document(grpc_to_payload(point.payload))
