"""Reads and deletes in one collection, whatever its role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.conversions.common_types import PointId

from textmatch.documents import point_id
from textmatch.index.client import translated_errors
from textmatch.index.schema import DENSE_VECTOR, VERSION_FIELD, StoredDocument, to_stored_document
from textmatch.vectors import Embeddings

_PAGE = 1_000


@dataclass(frozen=True)
class VersionsPage:
    """Versions by document id. `next_position` is None on the last page."""

    versions: dict[str, int]
    next_position: PointId | None


class CollectionPoints:
    """Every method raises CollectionGone if there is no such collection, and DependencyUnavailable."""

    def __init__(self, client: AsyncQdrantClient, collection: str) -> None:
        self._client = client
        self._collection = collection

    async def fetch(self, ids: Iterable[str], *, with_embeddings: bool = False) -> dict[str, StoredDocument]:
        """Those of these documents that are stored, by id."""
        async with translated_errors(self._collection):
            records = await self._client.retrieve(
                self._collection,
                [point_id(one) for one in ids],
                with_vectors=[DENSE_VECTOR] if with_embeddings else False,
            )
        stored = [to_stored_document(record, self._collection) for record in records]
        return {one.document.id: one for one in stored}

    async def versions(self, ids: Iterable[str]) -> dict[str, int]:
        """The versions of those of these documents that are stored, by id."""
        async with translated_errors(self._collection):
            records = await self._client.retrieve(
                self._collection, [point_id(one) for one in ids], with_payload=["id", VERSION_FIELD]
            )
        return _versions(records)

    async def page(self, position: PointId | None) -> VersionsPage:
        """One page of the versions of all documents.

        A walk through all pages finds every document that is stored the whole time. It may miss documents
        that are written or deleted during the walk.

        Args:
            position: `next_position` of the page before; None for the first page.
        """
        async with translated_errors(self._collection):
            records, following = await self._client.scroll(
                self._collection, limit=_PAGE, offset=position, with_payload=["id", VERSION_FIELD]
            )
        return VersionsPage(_versions(records), following)

    async def delete(self, versions: Mapping[str, int]) -> int:
        """Delete documents that are not newer than the version given for their id; returns how many."""
        by_version: dict[int, list[models.ExtendedPointId]] = {}
        for document_id, version in versions.items():
            by_version.setdefault(version, []).append(point_id(document_id))
        deleted = 0
        async with translated_errors(self._collection):
            for version, points in by_version.items():
                bounds = models.FieldCondition(key=VERSION_FIELD, range=models.Range(lte=version))
                condition = models.Filter(must=[models.HasIdCondition(has_id=points), bounds])
                deleted += (await self._client.count(self._collection, condition, exact=True)).count
                selector = models.FilterSelector(filter=condition)
                await self._client.delete(self._collection, selector, wait=True)
        return deleted

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
