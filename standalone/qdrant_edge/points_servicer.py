"""The gRPC service `qdrant.Points`."""

from __future__ import annotations

from functools import partial
from typing import Any

import qdrant_edge as edge
from qdrant_client import grpc as pb

from standalone.qdrant_edge.batches import query_batch
from standalone.qdrant_edge.catalog import Catalog
from standalone.qdrant_edge.collection import Collection
from standalone.qdrant_edge.errors import not_found
from standalone.qdrant_edge.filters import optional_filter
from standalone.qdrant_edge.points import EdgeId, NamedVector, to_edge_id, to_point_id
from standalone.qdrant_edge.queries import (
    DEFAULT_LIMIT,
    to_order_by,
    to_query_request,
    with_payload,
    with_vectors,
)
from standalone.qdrant_edge.results import facet_hits, retrieved_points, scored_points
from standalone.qdrant_edge.server import Handlers
from standalone.qdrant_edge.updates import UPDATE_METHODS


class PointsServicer:
    """Reads and writes of points, through aliases too."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    @property
    def handlers(self) -> Handlers:
        """The methods that are served, by their names in the API."""
        return {
            **{method: partial(self._update, method) for method in UPDATE_METHODS},
            "UpdateBatch": self._update_batch,
            "Get": self._get,
            "Scroll": self._scroll,
            "Count": self._count,
            "Facet": self._facet,
            "Query": self._query,
            "QueryBatch": self._query_batch,
        }

    async def _update(self, method: str, request: Any) -> pb.PointsOperationResponse:
        await self._catalog.resolve(request.collection_name).update(method, request)
        return pb.PointsOperationResponse(result=_update_result(request))

    async def _update_batch(self, request: pb.UpdateBatchPoints) -> pb.UpdateBatchResponse:
        await self._catalog.resolve(request.collection_name).update("UpdateBatch", request)
        return pb.UpdateBatchResponse(result=[_update_result(request) for _ in request.operations])

    async def _get(self, request: pb.GetPoints) -> pb.GetResponse:
        ids = [to_edge_id(one) for one in request.ids]
        collection = self._catalog.resolve(request.collection_name)
        payload, vectors = with_payload(request.with_payload), with_vectors(request.with_vectors)
        records = collection.retrieve(ids, payload, vectors)
        return pb.GetResponse(result=retrieved_points(records))

    async def _scroll(self, request: pb.ScrollPoints) -> pb.ScrollResponse:
        scroll = edge.ScrollRequest(
            offset=to_edge_id(request.offset) if request.HasField("offset") else None,
            limit=request.limit if request.HasField("limit") else DEFAULT_LIMIT,
            filter=optional_filter(request),
            with_payload=with_payload(request.with_payload),
            with_vector=with_vectors(request.with_vectors),
            order_by=to_order_by(request.order_by) if request.HasField("order_by") else None,
        )
        records, next_offset = self._catalog.resolve(request.collection_name).scroll(scroll)
        response = pb.ScrollResponse(result=retrieved_points(records))
        if next_offset is not None:
            response.next_page_offset.CopyFrom(to_point_id(next_offset))
        return response

    async def _count(self, request: pb.CountPoints) -> pb.CountResponse:
        exact = request.exact if request.HasField("exact") else True
        collection = self._catalog.resolve(request.collection_name)
        count = collection.count(edge.CountRequest(exact=exact, filter=optional_filter(request)))
        return pb.CountResponse(result=pb.CountResult(count=count))

    async def _facet(self, request: pb.FacetCounts) -> pb.FacetResponse:
        facet = edge.FacetRequest(
            request.key,
            limit=request.limit if request.HasField("limit") else DEFAULT_LIMIT,
            exact=request.exact,
            filter=optional_filter(request),
        )
        found = self._catalog.resolve(request.collection_name).facet(facet)
        return pb.FacetResponse(hits=facet_hits(found.hits))

    async def _query(self, request: pb.QueryPoints) -> pb.QueryResponse:
        collection = self._catalog.resolve(request.collection_name)
        query = to_query_request(request, partial(self._vector_of, collection))
        return pb.QueryResponse(result=scored_points(collection.query(query)))

    async def _query_batch(self, request: pb.QueryBatchPoints) -> pb.QueryBatchResponse:
        collection = self._catalog.resolve(request.collection_name)
        lookup = partial(self._vector_of, collection)
        response = pb.QueryBatchResponse()
        for hits in query_batch(collection, request.query_points, lookup):
            response.result.add(result=scored_points(hits))
        return response

    def _vector_of(
        self, collection: Collection, point: EdgeId, name: str, place: pb.LookupLocation
    ) -> NamedVector:
        """The vector of a stored point that a query names as an example."""
        if place.collection_name:
            collection = self._catalog.resolve(place.collection_name)
        records = collection.retrieve([point], with_payload=False, with_vectors=True)
        if not records:
            raise not_found(f"No point with id {point} found")
        vectors = records[0].vector
        vector = vectors.get(name) if isinstance(vectors, dict) else vectors
        if vector is None:
            raise not_found(f"Point {point} does not have vector {name}")
        return vector


def _update_result(request: Any) -> pb.UpdateResult:
    """Writes are always applied before the answer; the status follows what was asked for."""
    return pb.UpdateResult(status=pb.Completed if request.wait else pb.Acknowledged)
