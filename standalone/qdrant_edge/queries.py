"""Queries from protobuf."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import qdrant_edge as edge
from google.protobuf.timestamp_pb2 import Timestamp
from qdrant_client import grpc as pb

from standalone.qdrant_edge.enums import to_edge_enum
from standalone.qdrant_edge.errors import invalid, unsupported
from standalone.qdrant_edge.filters import optional_filter
from standalone.qdrant_edge.points import DEFAULT_VECTOR, EdgeId, NamedVector, to_edge_id, to_query_vector

DEFAULT_LIMIT: Final = 10
_DEFAULT_RRF_K: Final = 2

# Fetches the vector of a stored point: id, name of the vector, where to look -> vector.
VectorLookup: TypeAlias = Callable[[EdgeId, str, pb.LookupLocation], NamedVector]


def to_query_request(
    request: pb.QueryPoints, lookup: VectorLookup, found: edge.Filter | None = None
) -> edge.QueryRequest:
    """A whole query with its prefetches.

    Args:
        found: fits what the prefetches find, if that is known.
    """
    stage = _Stage(request, lookup, found)
    return edge.QueryRequest(
        **stage.arguments(),
        offset=request.offset,
        with_vector=with_vectors(request.with_vectors),
        with_payload=with_payload(request.with_payload),
    )


def to_prefetch_request(message: pb.PrefetchQuery, lookup: VectorLookup) -> edge.QueryRequest:
    """A prefetch as a query of its own, for the ids of what it finds."""
    return edge.QueryRequest(
        **_Stage(message, lookup).arguments(), offset=0, with_vector=False, with_payload=False
    )


def with_payload(selector: pb.WithPayloadSelector) -> Any:
    """Which payload fields to return; none unless asked for."""
    match selector.WhichOneof("selector_options"):
        case "include":
            return edge.PayloadSelector.Include(list(selector.include.fields))
        case "exclude":
            return edge.PayloadSelector.Exclude(list(selector.exclude.fields))
    return selector.enable


def with_vectors(selector: pb.WithVectorsSelector) -> bool | list[str]:
    """Which vectors to return; none unless asked for."""
    if selector.WhichOneof("selector_options") == "include":
        return list(selector.include.names)
    return selector.enable


def to_order_by(message: pb.OrderBy) -> edge.OrderBy:
    """Order by a payload field, which needs an index that knows ranges."""
    direction = to_edge_enum(edge.Direction, pb.Direction, message.direction)
    return edge.OrderBy(message.key, direction, _start_from(message.start_from))


@dataclass
class _Stage:
    """One level of a query; points that it names as examples are not among its own results."""

    message: pb.QueryPoints | pb.PrefetchQuery
    lookup: VectorLookup
    found: edge.Filter | None = None
    examples: set[EdgeId] = field(default_factory=set)

    def arguments(self) -> dict[str, Any]:
        """What queries and prefetches of the engine have in common."""
        message = self.message
        query = self.scoring()
        prefetches = message.prefetch if self.found is None else []
        return {
            "limit": message.limit if message.HasField("limit") else DEFAULT_LIMIT,
            "query": query,
            "prefetches": [edge.Prefetch(**_Stage(one, self.lookup).arguments()) for one in prefetches],
            "filter": self.filter(),
            "score_threshold": message.score_threshold if message.HasField("score_threshold") else None,
            "params": _search_params(message.params) if message.HasField("params") else None,
        }

    def scoring(self) -> Any:
        """What ranks the points; None orders them by id."""
        query = self.message.query
        kind = query.WhichOneof("variant")
        match kind:
            case None:
                return None
            case "nearest":
                return edge.Query.Nearest(self._vector(query.nearest), using=self._using)
            case "recommend":
                return self._recommend(query.recommend)
            case "order_by":
                return to_order_by(query.order_by)
            case "fusion":
                return edge.Fusion.Dbsf() if query.fusion == pb.DBSF else edge.Fusion.Rrf(_DEFAULT_RRF_K)
            case "rrf":
                return _rrf(query.rrf)
            case "sample":
                return edge.Sample.Random
        raise unsupported(f"the query {kind}")

    def filter(self) -> edge.Filter | None:
        """The filter of this level, without the examples; call after `scoring`."""
        conditions = [optional_filter(self.message), self.found]
        if self.examples:
            conditions.append(edge.Filter(must_not=[edge.HasIdCondition(set(self.examples))]))
        given: list[Any] = [one for one in conditions if one is not None]
        return edge.Filter(must=given) if len(given) > 1 else next(iter(given), None)

    @property
    def _using(self) -> str:
        return self.message.using or DEFAULT_VECTOR

    def _vector(self, message: pb.VectorInput) -> NamedVector:
        if message.WhichOneof("variant") != "id":
            return to_query_vector(message)
        example = to_edge_id(message.id)
        place = self.message.lookup_from
        if not place.collection_name:
            self.examples.add(example)
        return self.lookup(example, place.vector_name or self._using, place)

    def _recommend(self, message: pb.RecommendInput) -> Any:
        positives = [self._vector(one) for one in message.positive]
        negatives = [self._vector(one) for one in message.negative]
        if message.strategy == pb.AverageVector:
            return edge.Query.Nearest(_average(positives, negatives), using=self._using)
        examples = edge.RecommendQuery(positives, negatives)
        if message.strategy == pb.BestScore:
            return edge.Query.RecommendBestScore(examples, using=self._using)
        return edge.Query.RecommendSumScores(examples, using=self._using)


def _average(positives: list[Any], negatives: list[Any]) -> list[float]:
    """Mean of the positives, moved away from the mean of the negatives."""
    if not positives:
        raise invalid("At least one positive vector ID required with this strategy")
    if any(isinstance(vector, edge.SparseVector) for vector in (*positives, *negatives)):
        raise unsupported("averaging sparse vectors")
    target = np.mean(positives, axis=0)
    if negatives:
        target += target - np.mean(negatives, axis=0)
    return list(target)


def _rrf(message: pb.Rrf) -> Any:
    k = message.k if message.HasField("k") else _DEFAULT_RRF_K
    if k < 1:
        raise invalid("k of RRF must be at least 1")
    return edge.Fusion.Rrf(k, list(message.weights) or None)


def _search_params(message: pb.SearchParams) -> edge.SearchParams:
    quantization = None
    if message.HasField("quantization"):
        given = {one.name: value for one, value in message.quantization.ListFields()}
        quantization = edge.QuantizationSearchParams(**given)
    if message.HasField("acorn") or message.HasField("idf"):
        raise unsupported("acorn and idf of search params")
    return edge.SearchParams(
        hnsw_ef=message.hnsw_ef if message.HasField("hnsw_ef") else None,
        exact=message.exact,
        quantization=quantization,
        indexed_only=message.indexed_only,
    )


def _start_from(message: pb.StartFrom) -> int | float | str | None:
    kind = message.WhichOneof("value")
    if kind is None:
        return None
    value = getattr(message, kind)
    return value.ToJsonString() if isinstance(value, Timestamp) else value
