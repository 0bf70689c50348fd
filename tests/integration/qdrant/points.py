"""Short ways to make points and filters."""

from __future__ import annotations

from typing import Any

from qdrant_client import QdrantClient, models


def point(point_id: int | str, dense: list[float] | None = None, **payload: Any) -> models.PointStruct:
    """A point with that payload; the vector does not matter unless given."""
    return models.PointStruct(id=point_id, vector={"dense": dense or [1.0, 0.0, 0.0, 0.0]}, payload=payload)


def field(key: str, **condition: Any) -> models.FieldCondition:
    """A condition on a payload field."""
    return models.FieldCondition(key=key, **condition)


def must(*conditions: models.Condition) -> models.Filter:
    """All of these."""
    return models.Filter(must=list(conditions))


def must_not(*conditions: models.Condition) -> models.Filter:
    """None of these."""
    return models.Filter(must_not=list(conditions))


def payloads(client: QdrantClient, collection: str) -> dict[Any, Any]:
    """All payloads by id."""
    records, _ = client.scroll(collection, limit=1_000)
    return {record.id: record.payload for record in records}
