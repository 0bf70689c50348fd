"""What the engine finds, to protobuf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import qdrant_edge as edge
from qdrant_client import grpc as pb

from standalone.qdrant_edge.payloads import fill_fields
from standalone.qdrant_edge.points import to_point_id, to_vectors_output


def scored_points(hits: Iterable[edge.ScoredPoint]) -> list[pb.ScoredPoint]:
    """Hits of a query, best first."""
    return [
        _with_content(pb.ScoredPoint(id=to_point_id(hit.id), score=hit.score, version=hit.version), hit)
        for hit in hits
    ]


def retrieved_points(records: Iterable[edge.Record]) -> list[pb.RetrievedPoint]:
    """Points read by id or by scrolling."""
    return [_with_content(pb.RetrievedPoint(id=to_point_id(record.id)), record) for record in records]


def facet_hits(hits: Iterable[edge.FacetHit]) -> list[pb.FacetHit]:
    """Values of a field with their counts."""
    return [pb.FacetHit(value=_facet_value(hit.value), count=hit.count) for hit in hits]


def _with_content(message: Any, point: edge.ScoredPoint | edge.Record) -> Any:
    if point.payload:
        fill_fields(message.payload, point.payload)
    if point.vector is not None:
        message.vectors.CopyFrom(to_vectors_output(point.vector))
    if isinstance(point.order_value, int):
        message.order_value.int = point.order_value
    elif point.order_value is not None:
        message.order_value.float = point.order_value
    return message


def _facet_value(value: str | int | bool) -> pb.FacetValue:
    match value:
        case str():
            return pb.FacetValue(string_value=value)
        case bool():
            return pb.FacetValue(bool_value=value)
        case _:
            return pb.FacetValue(integer_value=value)
