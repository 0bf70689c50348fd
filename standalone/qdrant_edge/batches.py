"""Several queries in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import qdrant_edge as edge
from qdrant_client import grpc as pb

from standalone.qdrant_edge.collection import Collection
from standalone.qdrant_edge.queries import VectorLookup, to_prefetch_request, to_query_request

_Prefetches: TypeAlias = tuple[bytes, ...]


def query_batch(
    collection: Collection, requests: Sequence[pb.QueryPoints], lookup: VectorLookup
) -> Iterator[list[edge.ScoredPoint]]:
    """Hits of each query, best first. Prefetches that several queries have in common are searched once."""
    keys = [_prefetches(request) for request in requests]
    counts = Counter(keys)
    found: dict[_Prefetches, edge.Filter] = {}
    for request, key in zip(requests, keys, strict=True):
        if not key or counts[key] < 2:
            yield collection.query(to_query_request(request, lookup))
            continue
        if key not in found:
            ids = {
                hit.id
                for prefetch in request.prefetch
                for hit in collection.query(to_prefetch_request(prefetch, lookup))
            }
            found[key] = edge.Filter(must=[edge.HasIdCondition(ids)])
        yield collection.query(to_query_request(request, lookup, found[key]))


def _prefetches(request: pb.QueryPoints) -> _Prefetches:
    """What is alike for queries whose prefetches find the same, and empty if they are of no use to others."""
    if request.query.WhichOneof("variant") in {"fusion", "rrf"}:
        # These need to know what each prefetch found, and in which order.
        return ()
    return tuple(one.SerializeToString(deterministic=True) for one in request.prefetch)
