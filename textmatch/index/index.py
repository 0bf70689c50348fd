"""The interface to one collection in Qdrant: conditional writes, reads, searches and roles.

`Index` works on the physical collection in use, `CollectionPoints` (points.py) on one physical collection,
independent of its role. Physical collections are referred to by the model ids that they were built with.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from itertools import groupby, islice
from types import MappingProxyType
from typing import TypeVar

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.conversions.common_types import PointId

from textmatch.collection_config import CollectionConfig
from textmatch.collection_roles import RoleRecord
from textmatch.documents import Document
from textmatch.filters import Filter
from textmatch.index.client import CollectionGone, translated_errors
from textmatch.index.collections import Collections, RoleSwitcher
from textmatch.index.filter_warnings import SAMPLE_DOCUMENTS, filter_fields, filter_warnings
from textmatch.index.neighbors import NeighborSearch
from textmatch.index.points import (
    PAGE,
    CollectionPoints,
    DeleteCondition,
    Fingerprint,
    delete_operation,
    version_condition,
    versions_by_id,
)
from textmatch.index.schema import (
    DOCUMENT_FIELDS,
    IS_TRUNCATED,
    VERSION_FIELD,
    StoredDocument,
    document_points,
    passages_of,
    payload_selector,
    points_of,
    to_passage_points,
    to_point,
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
from textmatch.passages import EmbeddedPassages
from textmatch.vectors import Embeddings

Stored = TypeVar("Stored")

_FILTERS_PER_CALL = 32
# Each has up to 16 KB of attributes; a call of gRPC to Qdrant has at most 64 MB.
_PASSAGES_PER_WRITE = 256
_NO_PASSAGES: Mapping[str, EmbeddedPassages] = MappingProxyType({})


class Index:
    """The documents of one collection, and the roles of its physical collections.

    Every method raises DependencyUnavailable when Qdrant does not answer in time. Reads return nothing while
    no model is in use. A method with `model_id` works on the physical collection of that model, and raises
    CollectionGone if it has been dropped.

    Args:
        confirm: raises CollectionNotFound if the collection has been deleted.
        record: where the roles are decided.

    Attributes:
        collections: reads roles, properties and notes of collections.
        roles: changes which collection has which role.
        term_statistics: the document frequencies of the terms of each collection.
    """

    def __init__(
        self,
        client: AsyncQdrantClient,
        config: CollectionConfig,
        confirm: Callable[[], Awaitable[None]],
        record: RoleRecord,
    ) -> None:
        self._client = client
        self._config = config
        self.collections = Collections(client, config, confirm, record)
        self.roles = RoleSwitcher(client, self.collections)
        self.term_statistics = TermStatisticsCache(self._read_term_statistics)

    async def model_in_use(self) -> str:
        """The id of the model that built the documents in use; "" while there is none."""
        return await self.collections.in_use()

    async def refresh_model_in_use(self) -> str:
        """The same, now."""
        return (await self.collections.refresh_roles()).in_use

    def points(self, model_id: str) -> CollectionPoints:
        """The points of one physical collection, independent of its role."""
        return CollectionPoints(self._client, self._config, model_id)

    def neighbors(self, model_id: str) -> NeighborSearch:
        """Finds the neighbors of documents of one physical collection."""
        return NeighborSearch(self._client, self._config.physical(model_id))

    async def upsert(
        self,
        documents: Sequence[Document],
        embeddings: Embeddings,
        *,
        model_id: str,
        passages: Mapping[str, EmbeddedPassages] = _NO_PASSAGES,
        truncated: AbstractSet[str] = frozenset(),
    ) -> None:
        """Write documents with their (count, dimension) embeddings, unless the stored version is as new.

        Qdrant compares the versions, so writes may be repeated and reordered. Returns when the writes are
        durable and searchable. Further passages come first: textmatch/indexing.py explains the order.

        Args:
            model_id: the model that made the embeddings; `collections.prepare` was called for it.
            passages: of the documents that have several, by document id. Their embedding is that of the
                first one.
            truncated: ids of the documents of which the model has not read the end.
        """
        await self.collections.ensure_payload_indexes(model_id)
        has_lexical = (await self.collections.info(model_id)).has_lexical
        by_version = sorted(zip(documents, embeddings, strict=True), key=lambda pair: pair[0].version)
        operations: list[models.UpdateOperation] = []
        for version, pairs in groupby(by_version, key=lambda pair: pair[0].version):
            points = [
                to_point(
                    document,
                    row,
                    has_lexical=has_lexical,
                    passages=passages[document.id].passages if document.id in passages else (),
                    is_truncated=document.id in truncated,
                )
                for document, row in pairs
            ]
            operations += [_upsert_if_newer(version, points), _delete_older_passages(version, points)]
        async with self._using(model_id) as physical:
            for document in documents:
                if document.id in passages:
                    further = to_passage_points(document, passages[document.id], has_lexical=has_lexical)
                    for some in _chunks(further, _PASSAGES_PER_WRITE):
                        operation = _upsert_if_newer(document.version, some)
                        await self._client.batch_update_points(physical, [operation], wait=True)
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

        The one in use comes first, then the dual-write targets, and all of them again if the roles
        have changed in between; textmatch/indexing.py explains the order.

        Returns:
            How many documents were deleted from the physical collection in use.
        """
        if not versions:
            return 0
        deleted = 0

        async def delete_from(model_id: str, *, is_in_use: bool) -> None:
            nonlocal deleted
            count = await self.delete_from(model_id, versions)
            deleted += count if is_in_use else 0

        await self._in_all_written(delete_from)
        return deleted

    async def delete_matching(self, condition: DeleteCondition, ids: Iterable[str] | None = None) -> None:
        """Delete the documents that a condition covers, as `delete` does.

        Args:
            ids: of these documents only.
        """

        async def delete_matching(model_id: str, **_: bool) -> None:
            await self.collections.ensure_payload_indexes(model_id)
            await self.points(model_id).delete_matching(condition, ids)

        await self._in_all_written(delete_matching)

    async def delete_outdated_passages(self, documents: Sequence[Document]) -> None:
        """As of CollectionPoints, in the collections that `delete` deletes from."""

        async def delete_outdated(model_id: str, **_: bool) -> None:
            await self.points(model_id).delete_outdated_passages(documents)

        if documents:
            await self._in_all_written(delete_outdated)

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
        points = points_of(ids)
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
                    document_points(*conditions),
                    limit=PAGE,
                    offset=offset,
                    with_payload=["id", VERSION_FIELD],
                )
            if records:
                yield versions_by_id(records)
            if offset is None:
                return

    async def count_matching(self, condition: DeleteCondition) -> int:
        """How many documents a condition covers."""
        return await self._count(condition.to_qdrant())

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
                physical,
                document_points(),
                limit=SAMPLE_DOCUMENTS,
                with_payload=[payload_selector(field) for field in fields],
            )
        return filter_warnings(condition, [(one.payload or {}).get("attributes", {}) for one in records])

    async def documents(self, points: Sequence[PointId], *, model_id: str) -> dict[PointId, Document]:
        """The documents of found points. Points that have been deleted since are missing.

        Of a document with several passages, the text is the passage of the point.
        """
        async with self._using(model_id) as physical:
            return await read_documents(self._client, physical, points)

    async def embeddings(self, points: Sequence[PointId], *, model_id: str) -> Mapping[PointId, Embeddings]:
        """The (dimension,) embeddings of found points. Points that have been deleted since are missing."""
        async with self._using(model_id) as physical:
            return await read_embeddings(self._client, physical, points)

    async def count(self) -> int:
        """How many documents are stored."""
        return await self._count()

    async def count_truncated(self) -> int:
        """Of how many stored documents the model has not read the end."""
        return await self._count(IS_TRUNCATED)

    def close(self) -> None:
        """Drop all caches and stop their background refreshes. The connection stays open."""
        self.collections.close()
        self.term_statistics.close()

    async def _count(self, *conditions: models.Condition) -> int:
        model_id = await self.model_in_use()
        if not model_id:
            return 0
        if conditions:
            await self.collections.ensure_payload_indexes(model_id)
        async with self._using(model_id):
            return await self.points(model_id).count(*conditions)

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

    async def _in_all_written(self, change: Callable[..., Awaitable[None]]) -> None:
        """Make a change in all collections that get writes, and again if their roles have changed since.

        A node may not know a new collection yet. The change is only left out if the collection has lost its
        role by then.

        Args:
            change: gets the model id, and `is_in_use`.
        """
        roles, latest = None, await self.collections.roles()
        while roles != latest:
            roles = latest
            failure = None
            for model_id in roles.written:
                try:
                    await change(model_id, is_in_use=model_id == roles.in_use)
                except CollectionGone as error:
                    await self.collections.forget_missing(roles, model_id)
                    failure = error
            latest = await self.collections.refresh_roles()
            if failure is not None and roles == latest:
                raise failure

    @asynccontextmanager
    async def _using(self, model_id: str) -> AsyncIterator[str]:
        """Gives the name of a physical collection, and translates Qdrant's errors.

        If the physical collection is gone, the roles are read again next time.
        """
        physical = self._config.physical(model_id)
        try:
            async with translated_errors(physical):
                yield physical
        except CollectionGone:
            self.collections.forget_roles()
            raise


def _chunks(points: Iterator[models.PointStruct], size: int) -> Iterator[list[models.PointStruct]]:
    """`itertools.batched` is new in Python 3.12."""
    while some := list(islice(points, size)):
        yield some


def _delete_older_passages(version: int, points: Sequence[models.PointStruct]) -> models.DeleteOperation:
    """Whether an older version has several passages is not known for certain before the write."""
    conditions = [passages_of(str(point.id) for point in points), version_condition(models.Range(lt=version))]
    return delete_operation(models.Filter(must=[*conditions]))


def _upsert_if_newer(version: int, points: Iterable[models.PointStruct]) -> models.UpsertOperation:
    # The condition applies to existing points only. A missing point is always inserted.
    condition = models.Filter(must=[version_condition(models.Range(lt=version))])
    return models.UpsertOperation(upsert=models.PointsList(points=list(points), update_filter=condition))
