"""The interface to one collection in Qdrant: conditional writes, reads, searches and aliases.

`Index` works on the physical collection in use, `CollectionPoints` on one physical collection, independent of
its role. Physical collections are referred to by the model ids that they were built with.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.conversions.common_types import PointId

from textmatch.collection_config import CollectionConfig
from textmatch.documents import Document, point_id
from textmatch.filters import Filter
from textmatch.index.client import CollectionGone, translated_errors
from textmatch.index.collections import AliasSwitcher, Collections, Roles
from textmatch.index.filter_warnings import SAMPLE_DOCUMENTS, filter_fields, filter_warnings
from textmatch.index.neighbors import NeighborSearch
from textmatch.index.schema import (
    ACCEPTED_FIELD,
    DENSE_VECTOR,
    DOCUMENT_FIELDS,
    VERSION_FIELD,
    StoredDocument,
    payload_selector,
    to_point,
    to_qdrant,
    to_stored_document,
)
from textmatch.index.search import (
    Hit,
    SearchQuery,
    read_documents,
    read_documents_after,
    read_embeddings,
    read_term_statistics,
    search,
)
from textmatch.index.term_statistics import TermStatistics, TermStatisticsCache
from textmatch.vectors import Embeddings

Stored = TypeVar("Stored")

_PAGE = 1_000
_FILTERS_PER_CALL = 32


@dataclass(frozen=True)
class VersionsPage:
    """Versions by document id. `next_position` is None on the last page."""

    versions: dict[str, int]
    next_position: PointId | None


@dataclass(frozen=True)
class Fingerprint:
    """What a write needs to know of a stored document."""

    version: int
    accepted_us: int
    content_hash: str


@dataclass(frozen=True)
class DeleteCondition:
    """What a delete covers: documents that match, are not newer, and were accepted before it.

    Args:
        max_version: None: documents of any version.
        accepted_until: in microseconds since 1970; None: documents that were accepted at any time.
    """

    where: Filter
    max_version: int | None = None
    accepted_until: int | None = None

    def to_qdrant(self) -> models.Filter:
        """The same as a filter of Qdrant."""
        conditions: list[models.Condition] = [to_qdrant(self.where)]
        for field, limit in ((VERSION_FIELD, self.max_version), (ACCEPTED_FIELD, self.accepted_until)):
            if limit is not None:
                conditions.append(models.FieldCondition(key=field, range=models.Range(lte=limit)))
        return models.Filter(must=conditions)


class CollectionPoints:
    """The points of the physical collection that a model built.

    Every method raises CollectionGone if there is no such collection, and DependencyUnavailable when Qdrant
    does not answer.
    """

    def __init__(self, client: AsyncQdrantClient, config: CollectionConfig, model_id: str) -> None:
        self._client = client
        self._model_id = model_id
        self._collection = config.physical(model_id)

    async def fetch(self, ids: Iterable[str], *, with_embeddings: bool = False) -> dict[str, StoredDocument]:
        """Those of these documents that are stored, by id."""
        async with translated_errors(self._collection):
            records = await self._client.retrieve(
                self._collection,
                [point_id(one) for one in ids],
                with_vectors=[DENSE_VECTOR] if with_embeddings else False,
            )
        stored = [to_stored_document(record, self._model_id) for record in records]
        return {one.document.id: one for one in stored}

    async def versions(self, ids: Iterable[str], *, on_all_replicas: bool = False) -> dict[str, int]:
        """The versions of those of these documents that are stored, by id.

        Args:
            on_all_replicas: leave out documents that a replica lacks or has in another version. A missing
                replica is then an error.
        """
        async with translated_errors(self._collection):
            records = await self._client.retrieve(
                self._collection,
                [point_id(one) for one in ids],
                with_payload=["id", VERSION_FIELD],
                consistency=models.ReadConsistencyType.ALL if on_all_replicas else None,
            )
        return _versions(records)

    async def fingerprints(self, ids: Iterable[str]) -> dict[str, Fingerprint]:
        """What is known of those of these documents that are stored, by id."""
        fields = ["id", VERSION_FIELD, ACCEPTED_FIELD, "content_hash"]
        async with translated_errors(self._collection):
            records = await self._client.retrieve(
                self._collection, [point_id(one) for one in ids], with_payload=fields
            )
        payloads = [record.payload or {} for record in records]
        return {
            one["id"]: Fingerprint(one[VERSION_FIELD], one.get(ACCEPTED_FIELD, 0), one["content_hash"])
            for one in payloads
        }

    async def page(self, position: PointId | None) -> VersionsPage:
        """One page of the versions of all documents.

        Reading all pages finds every document that is stored the whole time. It may miss documents that are
        written or deleted at the same time.

        Args:
            position: `next_position` of the page before; None for the first page.
        """
        async with translated_errors(self._collection):
            records, following = await self._client.scroll(
                self._collection, limit=_PAGE, offset=position, with_payload=["id", VERSION_FIELD]
            )
        return VersionsPage(_versions(records), following)

    async def delete(self, versions: Mapping[str, int]) -> int:
        """Delete documents that are not newer than the version given for their id; returns how many.

        It costs two round trips. The number is that of one replica: it lacks documents that an earlier,
        failed call has deleted there.
        """
        stored = await self.versions(versions)
        by_version: dict[int, list[models.ExtendedPointId]] = {}
        for document_id, version in versions.items():
            by_version.setdefault(version, []).append(point_id(document_id))
        operations = [
            models.DeleteOperation(delete=models.FilterSelector(filter=_up_to(version, points)))
            for version, points in by_version.items()
        ]
        async with translated_errors(self._collection):
            await self._client.batch_update_points(self._collection, operations, wait=True)
        return sum(version <= versions[document_id] for document_id, version in stored.items())

    async def delete_matching(self, condition: DeleteCondition, ids: Iterable[str] | None = None) -> None:
        """Delete the documents that a condition covers.

        Each replica evaluates it. A repeated call therefore completes one that failed.

        Args:
            ids: of these documents only.
        """
        conditions: list[models.Condition] = [condition.to_qdrant()]
        if ids is not None:
            conditions.append(models.HasIdCondition(has_id=[point_id(one) for one in ids]))
        selector = models.FilterSelector(filter=models.Filter(must=conditions))
        async with translated_errors(self._collection):
            await self._client.delete(self._collection, selector, wait=True)

    async def sample(self, count: int) -> list[str]:
        """The texts of `count` random documents, or of all documents if there are fewer."""
        async with translated_errors(self._collection):
            response = await self._client.query_points(
                self._collection,
                query=models.SampleQuery(sample=models.Sample.RANDOM),
                limit=count,
                with_payload=["text"],
            )
        return [(point.payload or {})["text"] for point in response.points]

    async def nearest(self, embedding: Embeddings, count: int) -> list[PointId]:
        """The ids of the points nearest to a (dimension,) embedding, nearest first.

        A document has the same point id in every collection.
        """
        async with translated_errors(self._collection):
            response = await self._client.query_points(
                self._collection,
                query=embedding.tolist(),
                using=DENSE_VECTOR,
                limit=count,
                with_payload=False,
            )
        return [point.id for point in response.points]

    async def count(self) -> int:
        """How many documents are stored."""
        async with translated_errors(self._collection):
            return (await self._client.count(self._collection, exact=True)).count


def _versions(records: Sequence[models.Record]) -> dict[str, int]:
    payloads = [record.payload or {} for record in records]
    return {payload["id"]: payload[VERSION_FIELD] for payload in payloads}


class Index:
    """The documents of one collection, and its aliases.

    Every method raises DependencyUnavailable when Qdrant does not answer in time. Reads return nothing while
    no model is in use. A method with `model_id` works on the physical collection of that model, and raises
    CollectionGone if it has been dropped.

    Args:
        confirm: raises CollectionNotFound if the collection has been deleted.

    Attributes:
        collections: reads roles, properties and notes of collections.
        aliases: changes which collection has which role.
        term_statistics: the document frequencies of the terms of each collection.
    """

    def __init__(
        self, client: AsyncQdrantClient, config: CollectionConfig, confirm: Callable[[], Awaitable[None]]
    ) -> None:
        self._client = client
        self._config = config
        self.collections = Collections(client, config, confirm)
        self.aliases = AliasSwitcher(client, self.collections)
        self.term_statistics = TermStatisticsCache(self._read_term_statistics)

    async def model_in_use(self) -> str:
        """The id of the model that built the documents in use; "" while there is none."""
        return await self.collections.in_use()

    async def refresh_model_in_use(self) -> str:
        """The same, read from Qdrant now."""
        return (await self.collections.refresh_roles()).in_use

    def points(self, model_id: str) -> CollectionPoints:
        """The points of one physical collection, independent of its role."""
        return CollectionPoints(self._client, self._config, model_id)

    def neighbors(self, model_id: str) -> NeighborSearch:
        """Finds the neighbors of documents of one physical collection."""
        return NeighborSearch(self._client, self._config.physical(model_id))

    async def upsert(self, documents: Sequence[Document], embeddings: Embeddings, *, model_id: str) -> None:
        """Write documents with their (count, dimension) embeddings, unless the stored version is as new.

        Qdrant compares the versions, so writes may be repeated and reordered. Returns when the writes are
        durable and searchable.

        Args:
            model_id: the model that made the embeddings; `collections.prepare` was called for it.
        """
        await self.collections.ensure_payload_indexes(model_id)
        has_lexical = (await self.collections.info(model_id)).has_lexical
        by_version = sorted(zip(documents, embeddings, strict=True), key=lambda pair: pair[0].version)
        operations = [
            _upsert_if_newer(
                version, [to_point(document, row, has_lexical=has_lexical) for document, row in pairs]
            )
            for version, pairs in groupby(by_version, key=lambda pair: pair[0].version)
        ]
        async with self._using(model_id) as physical:
            await self._client.batch_update_points(physical, operations, wait=True)

    async def fetch(self, ids: Sequence[str], *, with_embeddings: bool = False) -> dict[str, StoredDocument]:
        """Those of these documents that are stored, by id."""
        if not ids:
            return {}
        return await self._read(lambda points: points.fetch(ids, with_embeddings=with_embeddings))

    async def fingerprints(self, ids: Sequence[str]) -> dict[str, Fingerprint]:
        """What is known of those of these documents that are stored, by id."""
        if not ids:
            return {}
        return await self._read(lambda points: points.fingerprints(ids))

    async def delete(self, versions: Mapping[str, int]) -> int:
        """Delete stored documents that are not newer than the version given for their id.

        The one in use comes first, then the dual-write targets, and all of them again if the aliases
        have changed in between; textmatch/indexing.py explains the order.

        Returns:
            How many documents were deleted from the physical collections in use.
        """
        if not versions:
            return 0
        deleted = 0
        async for roles in self._until_roles_are_stable():
            for model_id in roles.written:
                with suppress(CollectionGone):
                    count = await self.delete_from(model_id, versions)
                    deleted += count if model_id == roles.in_use else 0
        return deleted

    async def delete_matching(self, condition: DeleteCondition, ids: Iterable[str] | None = None) -> None:
        """Delete the documents that a condition covers, as `delete` does.

        Args:
            ids: of these documents only.
        """
        async for roles in self._until_roles_are_stable():
            for model_id in roles.written:
                with suppress(CollectionGone):
                    await self.collections.ensure_payload_indexes(model_id)
                    await self.points(model_id).delete_matching(condition, ids)

    async def delete_from(self, model_id: str, versions: Mapping[str, int]) -> int:
        """The same in one physical collection, independent of its role."""
        if not versions:
            return 0
        await self.collections.ensure_payload_indexes(model_id)
        return await self.points(model_id).delete(versions)

    async def find_versions(self, condition: DeleteCondition) -> AsyncIterator[dict[str, int]]:
        """Pages of versions by id, of all documents that a condition covers."""
        async for page in self._find_versions([condition.to_qdrant()]):
            yield page

    async def find_versions_of(
        self, ids: Iterable[str], conditions: Sequence[DeleteCondition]
    ) -> dict[str, int]:
        """The versions of those of these documents that any of the conditions covers.

        It costs one round trip for some dozens of conditions.
        """
        points = models.HasIdCondition(has_id=[point_id(one) for one in ids])
        found: dict[str, int] = {}
        for start in range(0, len(conditions), _FILTERS_PER_CALL):
            some = conditions[start : start + _FILTERS_PER_CALL]
            any_of: list[models.Condition] = [one.to_qdrant() for one in some]
            async for page in self._find_versions([points, models.Filter(should=any_of)]):
                found |= page
        return found

    async def _find_versions(self, conditions: list[models.Condition]) -> AsyncIterator[dict[str, int]]:
        model_id = await self.model_in_use()
        if model_id:
            await self.collections.ensure_payload_indexes(model_id)
        offset: PointId | None = None
        while model_id:
            async with self._using(model_id) as physical:
                records, offset = await self._client.scroll(
                    physical,
                    models.Filter(must=conditions),
                    limit=_PAGE,
                    offset=offset,
                    with_payload=["id", VERSION_FIELD],
                )
            if records:
                yield _versions(records)
            if offset is None:
                return

    async def count_matching(self, condition: DeleteCondition) -> int:
        """How many documents a condition covers."""
        model_id = await self.model_in_use()
        if not model_id:
            return 0
        await self.collections.ensure_payload_indexes(model_id)
        async with self._using(model_id) as physical:
            return (await self._client.count(physical, condition.to_qdrant(), exact=True)).count

    async def documents_after(
        self, condition: Filter, after: str, count: int, fields: Sequence[str] = DOCUMENT_FIELDS
    ) -> list[Document]:
        """Some of the documents that match; `read_documents_after` explains the arguments."""
        model_id = await self.model_in_use()
        if not model_id:
            return []
        async with self._using(model_id) as physical:
            return await read_documents_after(self._client, physical, condition, after, count, fields)

    async def search(self, query: SearchQuery, *, model_id: str) -> list[Hit]:
        """The hits of a query, in no particular order."""
        async with self._using(model_id) as physical:
            return await search(self._client, physical, query)

    async def filter_warnings(self, condition: Filter, *, model_id: str) -> tuple[str, ...]:
        """What is suspicious about a filter that matches nothing; empty if nothing is."""
        fields = filter_fields(condition)
        if not fields:
            return ()
        async with self._using(model_id) as physical:
            records, _ = await self._client.scroll(
                physical, limit=SAMPLE_DOCUMENTS, with_payload=[payload_selector(field) for field in fields]
            )
        return filter_warnings(condition, [(one.payload or {}).get("attributes", {}) for one in records])

    async def documents(self, points: Sequence[PointId], *, model_id: str) -> dict[PointId, Document]:
        """The documents of found points. Points that have been deleted since are missing."""
        async with self._using(model_id) as physical:
            return await read_documents(self._client, physical, points)

    async def embeddings(self, points: Sequence[PointId], *, model_id: str) -> Mapping[PointId, Embeddings]:
        """The (dimension,) embeddings of found points. Points that have been deleted since are missing."""
        async with self._using(model_id) as physical:
            return await read_embeddings(self._client, physical, points)

    async def count(self) -> int:
        """How many documents are stored."""
        model_id = await self.model_in_use()
        if not model_id:
            return 0
        async with self._using(model_id):
            return await self.points(model_id).count()

    def close(self) -> None:
        """Drop all caches and stop their background refreshes. The connection stays open."""
        self.collections.close()
        self.term_statistics.close()

    async def _read(
        self, read: Callable[[CollectionPoints], Awaitable[dict[str, Stored]]]
    ) -> dict[str, Stored]:
        """Read from the physical collection in use; again from its successor, if it was just dropped."""
        model_id = await self.model_in_use()
        try:
            return await read(self.points(model_id)) if model_id else {}
        except CollectionGone:
            model_id = await self.refresh_model_in_use()
            return await read(self.points(model_id)) if model_id else {}

    async def _read_term_statistics(self, model_id: str) -> TermStatistics:
        physical = self._config.physical(model_id)
        async with translated_errors(physical):
            return await read_term_statistics(self._client, physical)

    async def _until_roles_are_stable(self) -> AsyncIterator[Roles]:
        """The roles, and again those that have changed since."""
        roles, latest = None, await self.collections.roles()
        while roles != latest:
            roles = latest
            yield roles
            latest = await self.collections.refresh_roles()

    @asynccontextmanager
    async def _using(self, model_id: str) -> AsyncIterator[str]:
        """Gives the name of a physical collection, and translates Qdrant's errors.

        If the physical collection is gone, the alias is read again next time.
        """
        physical = self._config.physical(model_id)
        try:
            async with translated_errors(physical):
                yield physical
        except CollectionGone:
            self.collections.forget_roles()
            raise


def _upsert_if_newer(version: int, points: Iterable[models.PointStruct]) -> models.UpsertOperation:
    # The condition applies to existing points only. A missing point is always inserted.
    condition = models.Filter(must=[_version_condition(models.Range(lt=version))])
    return models.UpsertOperation(upsert=models.PointsList(points=list(points), update_filter=condition))


def _up_to(version: int, points: Sequence[models.ExtendedPointId]) -> models.Filter:
    """Those of these points that are not newer."""
    bounds = _version_condition(models.Range(lte=version))
    return models.Filter(must=[bounds, models.HasIdCondition(has_id=list(points))])


def _version_condition(bounds: models.Range) -> models.FieldCondition:
    return models.FieldCondition(key=VERSION_FIELD, range=bounds)
