"""The points of one physical collection, independent of its role.

A document has one point, and one for each further passage of its text (textmatch/indexing.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.conversions.common_types import PointId

from textmatch.collection_config import CollectionConfig
from textmatch.documents import Document, content_hash, document_key, point_id
from textmatch.filters import Filter
from textmatch.index.client import translated_errors
from textmatch.index.schema import (
    ACCEPTED_FIELD,
    DENSE_VECTOR,
    PASSAGE_OF_FIELD,
    VERSION_FIELD,
    WHOLE_TEXT_FIELD,
    StoredDocument,
    document_points,
    passages_of,
    points_of,
    to_qdrant,
    to_stored_document,
)
from textmatch.index.search import SearchQuery, search
from textmatch.vectors import Embeddings

PAGE = 1_000


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

    Every method raises CollectionGone if the collection does not exist, and DependencyUnavailable when Qdrant
    does not answer.
    """

    def __init__(self, client: AsyncQdrantClient, config: CollectionConfig, model_id: str) -> None:
        self._client = client
        self._model_id = model_id
        self._collection = config.physical(model_id)

    async def fetch(
        self, ids: Iterable[str], *, with_embeddings: bool = False, is_whole: bool = True
    ) -> dict[str, StoredDocument]:
        """Those of these documents that are stored, by id.

        Args:
            is_whole: with their whole texts, which are read one by one if they are long. Otherwise of a
                document with several passages the text of the first one.
        """
        without_text = models.PayloadSelectorExclude(exclude=[WHOLE_TEXT_FIELD])
        stored = await self._fetch(ids, without_text, with_embeddings)
        for one in [one for one, found in stored.items() if found.passage_count > 1 and is_whole]:
            del stored[one]
            stored |= await self._fetch([one], True, with_embeddings)
        return stored

    async def _fetch(
        self, ids: Iterable[str], payload: models.PayloadSelectorExclude | bool, with_embeddings: bool
    ) -> dict[str, StoredDocument]:
        async with translated_errors(self._collection):
            records = await self._client.retrieve(
                self._collection,
                [point_id(one) for one in ids],
                with_payload=payload,
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
        return versions_by_id(records)

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
                self._collection,
                document_points(),
                limit=PAGE,
                offset=position,
                with_payload=["id", VERSION_FIELD],
            )
        return VersionsPage(versions_by_id(records), following)

    async def delete(self, versions: Mapping[str, int]) -> int:
        """Delete documents that are not newer than the version given for their id; returns how many.

        All their passages are deleted, also those of writes that have not been completed. It costs two round
        trips. The number is that of one replica: it lacks documents that an earlier, failed call has deleted
        there.
        """
        stored = await self.versions(versions)
        by_version: dict[int, list[str]] = {}
        for document_id, version in versions.items():
            by_version.setdefault(version, []).append(document_id)
        operations = [delete_operation(_up_to(version, ids)) for version, ids in by_version.items()]
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
            conditions.append(points_of(ids))
        selector = models.FilterSelector(filter=models.Filter(must=conditions))
        async with translated_errors(self._collection):
            await self._client.delete(self._collection, selector, wait=True)

    async def delete_outdated_passages(self, documents: Iterable[Document]) -> None:
        """Delete further passages that are not those of the stored documents.

        Those of newer versions stay: their documents may be written at this moment. Of a document that is not
        stored, the passages of the given version and content are deleted.

        Args:
            documents: the stored ones, or versions of them that are not going to be written.
        """
        given = list(documents)
        if not given:
            return
        stored = await self.fingerprints({document.id for document in given})
        filters = [_outdated(one, found.version, found.content_hash) for one, found in stored.items()]
        filters += [
            _passages_of(document.id, document.version, content_hash(document))
            for document in given
            if document.id not in stored
        ]
        async with translated_errors(self._collection):
            operations = [delete_operation(one) for one in filters]
            await self._client.batch_update_points(self._collection, operations, wait=True)

    async def sample(self, count: int) -> list[str]:
        """The texts of `count` random documents, or of all documents if there are fewer."""
        async with translated_errors(self._collection):
            response = await self._client.query_points(
                self._collection,
                query=models.SampleQuery(sample=models.Sample.RANDOM),
                query_filter=document_points(),
                limit=count,
                with_payload=["text"],
            )
        return [(point.payload or {})["text"] for point in response.points]

    async def nearest(self, embedding: Embeddings, count: int) -> list[str]:
        """The keys of the documents nearest to a (dimension,) embedding, nearest first.

        A document has the same key in every collection; `document_key` makes it.
        """
        async with translated_errors(self._collection):
            hits = await search(self._client, self._collection, SearchQuery(count, embedding))
        hits.sort(key=lambda hit: -(hit.cosine or 0.0))
        return list(dict.fromkeys(document_key(str(hit.point)) for hit in hits))[:count]

    async def count(self, *conditions: models.Condition) -> int:
        """How many documents are stored that meet all conditions."""
        async with translated_errors(self._collection):
            documents = document_points(*conditions)
            return (await self._client.count(self._collection, documents, exact=True)).count


def versions_by_id(records: Sequence[models.Record]) -> dict[str, int]:
    """The versions of the documents of these records, by document id."""
    payloads = [record.payload or {} for record in records]
    return {payload["id"]: payload[VERSION_FIELD] for payload in payloads}


def delete_operation(where: models.Filter) -> models.DeleteOperation:
    """Deletes the points that match, as one of several operations of a request."""
    return models.DeleteOperation(delete=models.FilterSelector(filter=where))


def _up_to(version: int, ids: Iterable[str]) -> models.Filter:
    """The points of those of these documents that are not newer."""
    return models.Filter(must=[version_condition(models.Range(lte=version)), points_of(ids)])


def _passages_of(document_id: str, version: int, revision_hash: str) -> models.Filter:
    """The further passages of one version and content of a document."""
    of_version = version_condition(models.Range(gte=version, lte=version))
    return models.Filter(must=[passages_of([point_id(document_id)]), of_version, _has_hash(revision_hash)])


def _outdated(document_id: str, version: int, revision_hash: str) -> models.Filter:
    """The further passages of older versions of a document, and of other contents with the same version."""
    older = version_condition(models.Range(lt=version))
    other = models.Filter(
        must=[version_condition(models.Range(lte=version))], must_not=[_has_hash(revision_hash)]
    )
    return models.Filter(must=[passages_of([point_id(document_id)])], should=[older, other])


def _has_hash(revision_hash: str) -> models.FieldCondition:
    # A hash differs in form from the id of a point, which is in the same list.
    return models.FieldCondition(key=PASSAGE_OF_FIELD, match=models.MatchValue(value=revision_hash))


def version_condition(bounds: models.Range) -> models.FieldCondition:
    """Whether the version of a point is within the bounds."""
    return models.FieldCondition(key=VERSION_FIELD, range=bounds)
