"""The index: conditional writes, reads and recall, all through the collection that is in use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.conversions.common_types import PointId

from textmatch.documents import Document, point_id
from textmatch.filters import Filter
from textmatch.index.client import CollectionGone, translated_errors
from textmatch.index.collection_info import CollectionInfo, CollectionInfoCache
from textmatch.index.collections import AliasSwitcher, Collections, Roles
from textmatch.index.points import CollectionPoints
from textmatch.index.schema import VERSION_FIELD, PayloadIndexes, StoredDocument, to_point, to_qdrant
from textmatch.index.search import Hit, SearchQuery, read_documents, read_embeddings, recall
from textmatch.vectors import Embeddings

_SCROLL_PAGE = 1_000


class Index:
    """All that the rest of textmatch does with Qdrant.

    Every method raises DependencyUnavailable when Qdrant does not answer in time. Reads of an index that has
    no collection yet find nothing.
    """

    def __init__(
        self, client: AsyncQdrantClient, alias: str, payload_indexes: PayloadIndexes | None = None
    ) -> None:
        self._client = client
        self._collections = Collections(client, alias)
        self._payload_indexes = payload_indexes
        self._traits = CollectionInfoCache(client)
        self.succession = AliasSwitcher(client, self._collections)

    async def collection(self) -> str:
        """The collection in use, which is the id of the model that built it; "" while there is none."""
        return await self._collections.current()

    async def refresh_collection(self) -> str:
        """The same, asking Qdrant instead of a short-lived cache."""
        return await self._collections.refresh()

    async def roles(self) -> Roles:
        """The collection in use and those beside it."""
        return await self._collections.roles()

    async def refresh_roles(self) -> Roles:
        """The same, asking Qdrant instead of a short-lived cache."""
        return await self._collections.refresh_roles()

    def points(self, collection: str) -> CollectionPoints:
        """The points of any collection by its name."""
        return CollectionPoints(self._client, collection)

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
        if self._payload_indexes:
            await self._payload_indexes.ensure(self._client, model_id)
        has_lexical = (await self.traits(model_id)).has_lexical
        by_version = sorted(zip(documents, embeddings, strict=True), key=lambda pair: pair[0].version)
        operations = [
            _upsert_if_newer(
                version, [to_point(document, row, has_lexical=has_lexical) for document, row in pairs]
            )
            for version, pairs in groupby(by_version, key=lambda pair: pair[0].version)
        ]
        async with self._watched(model_id):
            await self._client.batch_update_points(model_id, operations, wait=True)

    async def fetch(self, ids: Sequence[str], *, with_embeddings: bool = False) -> dict[str, StoredDocument]:
        """The stored ones of these documents, by id."""
        collection = await self.collection()
        if not collection or not ids:
            return {}
        try:
            return await self.points(collection).fetch(ids, with_embeddings=with_embeddings)
        except CollectionGone:
            collection = await self.refresh_collection()
            if not collection:
                return {}
            return await self.points(collection).fetch(ids, with_embeddings=with_embeddings)

    async def delete(self, versions: Mapping[str, int]) -> int:
        """Remove stored documents that are not newer than the version given for their id; says how many.

        They go from the collection in use first and then from its mirrors; textmatch/indexing.py
        says why in this order, and why again if the aliases have changed meanwhile.
        """
        if not versions:
            return 0
        deleted = 0
        roles, latest = None, await self.roles()
        while roles != latest:
            roles = latest
            deleted += await self._delete(roles.in_use, versions)
            for mirror in roles.mirrors:
                await self._delete(mirror, versions)
            latest = await self.refresh_roles()
        return deleted

    async def find_versions(
        self, condition: Filter, *, max_version: int, ids: Iterable[str] | None = None
    ) -> AsyncIterator[dict[str, int]]:
        """The versions of all documents that fit and are not newer, by id, a page at a time.

        Args:
            ids: look among these only.
        """
        collection = await self.collection()
        conditions: list[models.Condition] = [
            to_qdrant(condition),
            _version_condition(models.Range(lte=max_version)),
        ]
        if ids is not None:
            conditions.append(models.HasIdCondition(has_id=[point_id(one) for one in ids]))
        offset: PointId | None = None
        while collection:
            async with self._watched(collection):
                records, offset = await self._client.scroll(
                    collection,
                    models.Filter(must=conditions),
                    limit=_SCROLL_PAGE,
                    offset=offset,
                    with_payload=["id", VERSION_FIELD],
                )
            payloads = [record.payload or {} for record in records]
            if payloads:
                yield {payload["id"]: payload[VERSION_FIELD] for payload in payloads}
            if offset is None:
                return

    async def traits(self, collection: str) -> CollectionInfo:
        """What a collection can do and what is noted beside it; up to some seconds old.

        Raises:
            CollectionGone: it has been dropped.
        """
        async with self._watched(collection):
            return await self._traits.get(collection)

    async def note(self, collection: str, notes: Mapping[str, Any]) -> None:
        """Keep JSON-like notes beside a collection.

        Raises:
            CollectionGone: it has been dropped.
        """
        async with self._watched(collection):
            await self._traits.note(collection, notes)

    async def recall(self, query: SearchQuery, *, model_id: str) -> list[Hit]:
        """What a query finds in the collection of that model, in no particular order.

        Raises:
            CollectionGone: it has been dropped.
        """
        async with self._watched(model_id):
            return await recall(self._client, model_id, query)

    async def documents(self, points: Sequence[PointId], *, model_id: str) -> dict[PointId, Document]:
        """The documents of recalled points; what was deleted meanwhile is missing.

        Raises:
            CollectionGone: the collection has been dropped.
        """
        async with self._watched(model_id):
            return await read_documents(self._client, model_id, points)

    async def embeddings(self, points: Sequence[PointId], *, model_id: str) -> Mapping[PointId, Embeddings]:
        """The (dimension,) embeddings of recalled points; what was deleted meanwhile is missing.

        Raises:
            CollectionGone: the collection has been dropped.
        """
        async with self._watched(model_id):
            return await read_embeddings(self._client, model_id, points)

    async def count(self) -> int:
        """How many documents are stored."""
        collection = await self.collection()
        if not collection:
            return 0
        async with self._watched(collection):
            return await self.points(collection).count()

    async def close(self) -> None:
        """Close the connection."""
        self._collections.forget()
        self._traits.forget_all()
        await self._client.close()

    async def _delete(self, collection: str, versions: Mapping[str, int]) -> int:
        try:
            return await self.points(collection).delete(versions) if collection else 0
        except CollectionGone:
            return 0

    @asynccontextmanager
    async def _watched(self, collection: str) -> AsyncIterator[None]:
        """A collection that is gone was read from an alias that has been switched."""
        try:
            async with translated_errors(collection):
                yield
        except CollectionGone:
            self._collections.forget()
            raise


def _upsert_if_newer(version: int, points: Iterable[models.PointStruct]) -> models.UpsertOperation:
    # A point that does not exist yet is inserted whatever the condition says.
    condition = models.Filter(must=[_version_condition(models.Range(lt=version))])
    return models.UpsertOperation(upsert=models.PointsList(points=list(points), update_filter=condition))


def _version_condition(bounds: models.Range) -> models.FieldCondition:
    return models.FieldCondition(key=VERSION_FIELD, range=bounds)
