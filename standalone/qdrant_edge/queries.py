"""Queries from protobuf, one at a time and in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import qdrant_edge as edge
from qdrant_client import grpc as pb

from standalone.qdrant_edge.collection import EdgeCollection
from standalone.qdrant_edge.conversions import (
    DEFAULT_VECTOR,
    NamedVector,
    optional_filter,
    to_edge_id,
    to_edge_vector,
)
from standalone.qdrant_edge.errors import invalid, not_found, unsupported

DEFAULT_LIMIT: Final = 10
_DEFAULT_RRF_K: Final = 2

_PrefetchKey: TypeAlias = tuple[bytes, ...]


def run_query(collection: EdgeCollection, request: pb.QueryPoints) -> list[edge.ScoredPoint]:
    """Hits of one query, best first."""
    return collection.query(_query_request(collection, request))


def run_query_batch(
    collection: EdgeCollection, requests: Sequence[pb.QueryPoints]
) -> Iterator[list[edge.ScoredPoint]]:
    """Hits of each query, best first. Prefetches that several queries share are searched once."""
    keys = [_prefetch_key(request) for request in requests]
    counts = Counter(keys)
    found: dict[_PrefetchKey, edge.Filter] = {}
    for request, key in zip(requests, keys, strict=True):
        if not key or counts[key] < 2:
            yield run_query(collection, request)
            continue
        if key not in found:
            ids = {
                hit.id
                for prefetch in request.prefetch
                for hit in collection.query(_prefetch_request(collection, prefetch))
            }
            found[key] = edge.Filter(must=[edge.HasIdCondition(ids)])
        yield collection.query(_query_request(collection, request, found[key]))


def with_payload(selector: pb.WithPayloadSelector) -> Any:
    """Which payload fields to return; none by default."""
    match selector.WhichOneof("selector_options"):
        case "include":
            return edge.PayloadSelector.Include(list(selector.include.fields))
        case "exclude":
            return edge.PayloadSelector.Exclude(list(selector.exclude.fields))
    return selector.enable


def with_vectors(selector: pb.WithVectorsSelector) -> bool | list[str]:
    """Which vectors to return; none by default."""
    if selector.WhichOneof("selector_options") == "include":
        return list(selector.include.names)
    return selector.enable


def _prefetch_key(request: pb.QueryPoints) -> _PrefetchKey:
    """Equal for queries whose prefetches find the same points; empty if their results cannot be shared."""
    if request.query.WhichOneof("variant") in {"fusion", "rrf"}:
        # A fusion needs the ranks in each prefetch.
        return ()
    return tuple(one.SerializeToString(deterministic=True) for one in request.prefetch)


def _query_request(
    collection: EdgeCollection, request: pb.QueryPoints, found: edge.Filter | None = None
) -> edge.QueryRequest:
    """A whole query; `found` replaces its prefetches by a filter on their hits."""
    return edge.QueryRequest(
        **_stage_arguments(collection, request, found),
        offset=request.offset,
        with_vector=with_vectors(request.with_vectors),
        with_payload=with_payload(request.with_payload),
    )


def _prefetch_request(collection: EdgeCollection, message: pb.PrefetchQuery) -> edge.QueryRequest:
    """A prefetch as a separate query for the ids of its hits."""
    return edge.QueryRequest(
        **_stage_arguments(collection, message), offset=0, with_vector=False, with_payload=False
    )


def _stage_arguments(
    collection: EdgeCollection,
    message: pb.QueryPoints | pb.PrefetchQuery,
    found: edge.Filter | None = None,
) -> dict[str, Any]:
    """The arguments that a query and a prefetch of the engine have in common."""
    if message.HasField("lookup_from"):
        raise unsupported("lookup_from")
    conditions: list[Any] = [optional_filter(message), found]
    nearest = message.query.nearest
    if nearest.WhichOneof("variant") == "id":
        # A point that a query names as its example is not among the results.
        conditions.append(edge.Filter(must_not=[edge.HasIdCondition({to_edge_id(nearest.id)})]))
    given = [one for one in conditions if one is not None]
    prefetches = message.prefetch if found is None else []
    return {
        "limit": message.limit if message.HasField("limit") else DEFAULT_LIMIT,
        "query": _scoring(collection, message.query, message.using or DEFAULT_VECTOR),
        "prefetches": [edge.Prefetch(**_stage_arguments(collection, one)) for one in prefetches],
        "filter": edge.Filter(must=given) if len(given) > 1 else next(iter(given), None),
        "score_threshold": message.score_threshold if message.HasField("score_threshold") else None,
        "params": _search_params(message.params) if message.HasField("params") else None,
    }


def _scoring(collection: EdgeCollection, query: pb.Query, using: str) -> Any:
    """How the points are ranked; None orders them by id."""
    kind = query.WhichOneof("variant")
    match kind:
        case None:
            return None
        case "nearest":
            return edge.Query.Nearest(_query_vector(collection, query.nearest, using), using=using)
        case "fusion":
            return edge.Fusion.Dbsf() if query.fusion == pb.DBSF else edge.Fusion.Rrf(_DEFAULT_RRF_K)
        case "rrf":
            k = query.rrf.k if query.rrf.HasField("k") else _DEFAULT_RRF_K
            if k < 1:
                raise invalid("k of RRF must be at least 1")
            return edge.Fusion.Rrf(k, list(query.rrf.weights) or None)
        case "sample":
            return edge.Sample.Random
    raise unsupported(f"the query {kind}")


def _query_vector(collection: EdgeCollection, message: pb.VectorInput, name: str) -> NamedVector:
    """The vector given in a query, or that of the stored point that the query names."""
    if message.WhichOneof("variant") != "id":
        return to_edge_vector(message)
    point = to_edge_id(message.id)
    records = collection.retrieve([point], with_payload=False, with_vectors=True)
    if not records:
        raise not_found(f"No point with id {point} found")
    vectors = records[0].vector
    vector = vectors.get(name) if isinstance(vectors, dict) else vectors
    if vector is None:
        raise not_found(f"Point {point} does not have vector {name}")
    return vector


def _search_params(message: pb.SearchParams) -> edge.SearchParams:
    for part in ("acorn", "idf"):
        if message.HasField(part):
            raise unsupported(f"the search parameter {part}")
    quantization = None
    if message.HasField("quantization"):
        given = {one.name: value for one, value in message.quantization.ListFields()}
        quantization = edge.QuantizationSearchParams(**given)
    return edge.SearchParams(
        hnsw_ef=message.hnsw_ef if message.HasField("hnsw_ef") else None,
        exact=message.exact,
        quantization=quantization,
        indexed_only=message.indexed_only,
    )
