"""Recall: the nearest documents by embedding, by shared words, or by both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import AsyncQdrantClient, grpc, models
from qdrant_client.conversions.common_types import PointId
from qdrant_client.conversions.conversion import RestToGrpc

from textmatch.documents import Document
from textmatch.filters import Filter
from textmatch.index.bm25 import query_vector
from textmatch.index.connection import translated_errors
from textmatch.index.filters import to_qdrant
from textmatch.index.schema import DENSE_VECTOR, DOCUMENT_FIELDS, LEXICAL_VECTOR, to_document
from textmatch.vectors import Embeddings

# Candidates that the graph looks at; see bench/RESULTS.md for what it gives.
_MIN_SEARCH_WIDTH = 256
_LONGEST_SECONDS = 60.0


@dataclass(frozen=True)
class RecallQuery:
    """What to look for: an (dimension,) embedding, a text whose words count, or both.

    With both, `count` are looked for each way, so that up to twice as many are found; `fuse_ranks` then also
    fuses their ranks.
    """

    count: int
    embedding: Embeddings | None = None
    text: str = ""
    condition: Filter | None = None
    fuse_ranks: bool = False


@dataclass(frozen=True)
class Hit:
    """A recalled point: cosine -1..1 (0 if there was no embedding), BM25 from 0 up (None without a text).

    `fused_ranks` is 1 for what is first both ways, and None if ranks were not fused.
    """

    point: PointId
    cosine: float
    bm25: float | None = None
    fused_ranks: float | None = None


async def recall(client: AsyncQdrantClient, collection: str, query: RecallQuery) -> list[Hit]:
    """What is found, in no particular order.

    Raises:
        CollectionGone: there is no such collection.
    """
    requests = _requests(query)
    if not requests:
        return []
    message = grpc.QueryBatchPoints(
        collection_name=collection,
        query_points=[RestToGrpc.convert_query_request(request, collection) for request in requests],
    )
    async with translated_errors(collection):
        # The client's own method makes an object of every point, which takes longer than the search.
        answer = await client.grpc_points.QueryBatch(message, timeout=_LONGEST_SECONDS)
    found = [{point.id.uuid: point.score for point in one.result} for one in answer.result]
    if query.embedding is None:
        return [Hit(point, 0.0, score) for point, score in found[0].items()]
    if len(found) == 1:
        return [Hit(point, score, 0.0 if query.text else None) for point, score in found[0].items()]
    fused = found[2] if len(found) > 2 else {}
    return [
        Hit(point, cosine, found[1].get(point, 0.0), fused.get(point)) for point, cosine in found[0].items()
    ]


async def read_documents(
    client: AsyncQdrantClient, collection: str, points: Sequence[PointId]
) -> dict[PointId, Document]:
    """The documents that are still stored.

    Raises:
        CollectionGone: there is no such collection.
    """
    if not points:
        return {}
    async with translated_errors(collection):
        records = await client.retrieve(collection, points, with_payload=DOCUMENT_FIELDS)
    return {record.id: to_document(record.payload or {}) for record in records}


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


def _requests(query: RecallQuery) -> list[models.QueryRequest]:
    """One for each score; with both, each scores what either finds."""
    terms = query_vector(query.text) if query.text else models.SparseVector(indices=[], values=[])
    searches = []
    if query.embedding is not None:
        searches.append(_dense(query.embedding.tolist(), query))
    if terms.indices:
        searches.append(_lexical(terms, query))
    if len(searches) < 2:
        return [_alone(search) for search in searches]
    both = [_rescored(searches, search.query, search.using, query) for search in searches]
    if query.fuse_ranks:
        both.append(_rescored(searches, models.FusionQuery(fusion=models.Fusion.RRF), None, query))
    return both


def _rescored(
    searches: list[models.Prefetch], scored_by: Any, using: str | None, query: RecallQuery
) -> models.QueryRequest:
    """What any of the searches finds, scored by one of them or by all ranks."""
    return models.QueryRequest(
        prefetch=searches, query=scored_by, using=using, limit=2 * query.count, with_payload=False
    )


def _dense(embedding: list[float], query: RecallQuery) -> models.Prefetch:
    return models.Prefetch(
        query=embedding,
        using=DENSE_VECTOR,
        filter=_filter(query),
        limit=query.count,
        params=models.SearchParams(hnsw_ef=max(_MIN_SEARCH_WIDTH, 2 * query.count)),
    )


def _lexical(terms: models.SparseVector, query: RecallQuery) -> models.Prefetch:
    return models.Prefetch(query=terms, using=LEXICAL_VECTOR, filter=_filter(query), limit=query.count)


def _alone(search: models.Prefetch) -> models.QueryRequest:
    return models.QueryRequest(
        query=search.query,
        using=search.using,
        filter=search.filter,
        params=search.params,
        limit=search.limit,
        with_payload=False,
    )


def _filter(query: RecallQuery) -> models.Filter | None:
    return to_qdrant(query.condition) if query.condition else None
