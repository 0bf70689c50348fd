"""The nearest neighbors of many stored documents, by their stored embeddings. Nothing is embedded.

Documents of several passages are compared by the first one.

search = collection.index.neighbors(model_id)
documents = await search.embedded_after(Filter(), "", 64)
found = await search.nearest([one.embedding for one in documents], 10, Filter(), min_cosine=0.9)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import AsyncQdrantClient, grpc, models
from qdrant_client.conversions.common_types import PointId

from textmatch.documents import Document, point_id
from textmatch.filters import Filter
from textmatch.index.client import translated_errors
from textmatch.index.schema import DENSE_VECTOR, MIN_HNSW_EF, document_points, to_grpc, to_qdrant
from textmatch.index.search import read_documents, read_embeddings
from textmatch.time_slices import in_slices
from textmatch.vectors import Embeddings

_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class EmbeddedId:
    """The id of a document, its point, and its (dimension,) embedding."""

    document_id: str
    point: str
    embedding: Embeddings


class NeighborSearch:
    """Reads one physical collection.

    Every method raises CollectionGone if the collection does not exist, and DependencyUnavailable when Qdrant
    does not answer.
    """

    def __init__(self, client: AsyncQdrantClient, physical: str) -> None:
        self._client = client
        self._physical = physical

    async def embedded_after(self, condition: Filter, after: str, count: int) -> list[EmbeddedId]:
        """Up to `count` documents that match, in the order of their point ids; fewer at the end only.

        Args:
            after: the id of a document, stored or not; those after it are read. "": from the first one on.
        """
        async with translated_errors(self._physical):
            records, _ = await self._client.scroll(
                self._physical,
                document_points(to_qdrant(condition)),
                # The document of the offset comes first, if it is stored and matches.
                limit=count + bool(after),
                offset=point_id(after) if after else None,
                with_payload=["id"],
                with_vectors=[DENSE_VECTOR],
            )
        found = [_embedded(record) async for record in in_slices(records)]
        return [one for one in found if one.document_id != after][:count]

    async def nearest(
        self, embeddings: Sequence[Embeddings], count: int, condition: Filter, min_cosine: float
    ) -> list[dict[PointId, float]]:
        """For each (dimension,) embedding the cosines of its nearest documents that match, nearest first."""
        if not embeddings:
            return []
        where = to_grpc(document_points(to_qdrant(condition)))
        params = grpc.SearchParams(hnsw_ef=max(MIN_HNSW_EF, 2 * count))
        requests = [
            grpc.QueryPoints(
                collection_name=self._physical,
                query=grpc.Query(nearest=grpc.VectorInput(dense=grpc.DenseVector(data=embedding.tolist()))),
                using=DENSE_VECTOR,
                filter=where,
                limit=count,
                score_threshold=min_cosine,
                params=params,
            )
            async for embedding in in_slices(embeddings)
        ]
        message = grpc.QueryBatchPoints(collection_name=self._physical, query_points=requests)
        async with translated_errors(self._physical):
            answer = await self._client.grpc_points.QueryBatch(message, timeout=_TIMEOUT_SECONDS)
        return [
            {point.id.uuid: point.score for point in one.result} async for one in in_slices(answer.result)
        ]

    async def embeddings(self, points: Sequence[PointId]) -> Mapping[PointId, Embeddings]:
        """The (dimension,) embeddings of the points that are still stored."""
        if not points:
            return {}
        async with translated_errors(self._physical):
            return await read_embeddings(self._client, self._physical, points)

    async def documents(self, points: Sequence[PointId]) -> dict[PointId, Document]:
        """The documents of the points that are still stored."""
        async with translated_errors(self._physical):
            return await read_documents(self._client, self._physical, points)


def _embedded(record: models.Record) -> EmbeddedId:
    vectors: Any = record.vector
    embedding = np.asarray(vectors[DENSE_VECTOR], dtype=np.float32)
    return EmbeddedId((record.payload or {})["id"], str(record.id), embedding)
