"""The index: conditional writes, reads and recall, all through the collection that is in use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import groupby

import grpc
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.conversions.common_types import PointId

from textmatch.documents import Document, point_id
from textmatch.filters import Filter
from textmatch.index.collections import Collections
from textmatch.index.connection import translated_errors
from textmatch.index.filters import to_qdrant
from textmatch.index.schema import (
    DENSE_VECTOR,
    DOCUMENT_FIELDS,
    VERSION_FIELD,
    Candidate,
    StoredDocument,
    to_document,
    to_point,
    to_stored_document,
)
from textmatch.vectors import Embeddings

_SCROLL_PAGE = 1_000


class Index:
    """All that the rest of textmatch does with Qdrant.

    Every method raises DependencyUnavailable when Qdrant does not answer in time. Reads of an index that has
    no collection yet find nothing.
    """

    def __init__(self, client: AsyncQdrantClient, alias: str) -> None:
        self._client = client
        self._collections = Collections(client, alias)

    async def collection(self) -> str:
        """The collection in use, which is the id of the model that built it; "" while there is none."""
        return await self._collections.current()

    async def refresh_collection(self) -> str:
        """The same, asking Qdrant instead of a short-lived cache."""
        return await self._collections.refresh()

    async def prepare(self, model_id: str, dimension: int) -> None:
        """Make sure that the collection of this model exists and is the one in use.

        Raises:
            ModelMismatch: another model's collection is in use.
        """
        await self._collections.prepare(model_id, dimension)

    async def upsert(self, documents: Sequence[Document], embeddings: Embeddings, *, model_id: str) -> None:
        """Write documents with their (count, dimension) embeddings, each only if newer than what is stored.

        Qdrant itself decides by the version, so that neither order nor repetition of writes matters. Returns
        when the writes are durable and searchable.

        Args:
            model_id: the model that made the embeddings; `prepare` was called for it.
        """
        by_version = sorted(zip(documents, embeddings, strict=True), key=lambda pair: pair[0].version)
        operations = [
            _upsert_if_newer(version, [to_point(document, embedding) for document, embedding in pairs])
            for version, pairs in groupby(by_version, key=lambda pair: pair[0].version)
        ]
        async with translated_errors():
            await self._client.batch_update_points(model_id, operations, wait=True)

    async def fetch(self, ids: Sequence[str], *, with_embeddings: bool = False) -> dict[str, StoredDocument]:
        """The stored ones of these documents, by id."""
        collection = await self.collection()
        if not collection:
            return {}
        async with translated_errors():
            try:
                records = await self._client.retrieve(
                    collection, [point_id(one) for one in ids], with_vectors=with_embeddings
                )
            except grpc.aio.AioRpcError as error:
                self._check_collection_is_gone(error)
                return {}
        stored = [to_stored_document(record, collection) for record in records]
        return {one.document.id: one for one in stored}

    async def delete(self, versions: Mapping[str, int]) -> int:
        """Remove stored documents that are not newer than the version given for their id; says how many."""
        collection = await self.collection()
        if not collection or not versions:
            return 0
        by_version: dict[int, list[models.ExtendedPointId]] = {}
        for document_id, version in versions.items():
            by_version.setdefault(version, []).append(point_id(document_id))
        deleted = 0
        async with translated_errors():
            for version, points in by_version.items():
                condition = models.Filter(
                    must=[models.HasIdCondition(has_id=points), _version_condition(models.Range(lte=version))]
                )
                deleted += (await self._client.count(collection, condition, exact=True)).count
                selector = models.FilterSelector(filter=condition)
                await self._client.delete(collection, selector, wait=True)
        return deleted

    async def find_ids(self, condition: Filter) -> AsyncIterator[list[str]]:
        """The ids of all documents that fit, a page at a time."""
        collection = await self.collection()
        offset: PointId | None = None
        while collection:
            async with translated_errors():
                records, offset = await self._client.scroll(
                    collection, to_qdrant(condition), limit=_SCROLL_PAGE, offset=offset, with_payload=["id"]
                )
            if records:
                yield [(record.payload or {})["id"] for record in records]
            if offset is None:
                return

    async def recall(
        self, embedding: Embeddings, count: int, condition: Filter | None, *, model_id: str
    ) -> list[Candidate]:
        """The nearest documents to a (dimension,) embedding made by `model_id`, nearest first."""
        async with translated_errors():
            try:
                response = await self._client.query_points(
                    model_id,
                    query=embedding.tolist(),
                    using=DENSE_VECTOR,
                    query_filter=to_qdrant(condition) if condition else None,
                    limit=count,
                    with_payload=DOCUMENT_FIELDS,
                )
            except grpc.aio.AioRpcError as error:
                self._check_collection_is_gone(error)
                return []
        return [Candidate(to_document(point.payload or {}), point.score) for point in response.points]

    async def count(self) -> int:
        """How many documents are stored."""
        collection = await self.collection()
        if not collection:
            return 0
        async with translated_errors():
            return (await self._client.count(collection, exact=True)).count

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    def _check_collection_is_gone(self, error: grpc.aio.AioRpcError) -> None:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise error
        self._collections.forget()


def _upsert_if_newer(version: int, points: Iterable[models.PointStruct]) -> models.UpsertOperation:
    # A point that does not exist yet is inserted whatever the condition says.
    condition = models.Filter(must=[_version_condition(models.Range(lt=version))])
    return models.UpsertOperation(upsert=models.PointsList(points=list(points), update_filter=condition))


def _version_condition(bounds: models.Range) -> models.FieldCondition:
    return models.FieldCondition(key=VERSION_FIELD, range=bounds)
