"""`update_filter` applies to points that exist; points that do not exist are always written."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from tests.integration.qdrant.points import field, must, payloads, point


def _older_than(version: int) -> models.Filter:
    return must(field("version", range=models.Range(lt=version)))


@pytest.mark.parametrize(
    ("stored", "written", "expected"),
    [
        pytest.param(None, 5, 5, id="a new point is written"),
        pytest.param(5, 6, 6, id="a newer version is written"),
        pytest.param(5, 5, 5, id="the same version is ignored"),
        pytest.param(5, 4, 5, id="a stale version is ignored"),
        pytest.param(2**53 - 1, 2**53, 2**53, id="versions are compared exactly up to 2^53"),
    ],
)
def test_a_write_counts_only_if_newer(
    client: QdrantClient, collection: str, stored: int | None, written: int, expected: int
):
    if stored is not None:
        client.upsert(collection, [point(1, version=stored, text=f"v{stored}")])
    client.upsert(
        collection, [point(1, version=written, text=f"v{written}")], update_filter=_older_than(written)
    )
    assert payloads(client, collection) == {1: {"version": expected, "text": f"v{expected}"}}


def test_a_stale_write_leaves_the_vector_too(client: QdrantClient, collection: str):
    client.upsert(collection, [point(1, [0.0, 1.0, 0.0, 0.0], version=2)])
    client.upsert(collection, [point(1, [0.0, 0.0, 1.0, 0.0], version=1)], update_filter=_older_than(1))
    stored = client.retrieve(collection, [1], with_vectors=True)[0]
    assert stored.vector == {"dense": [0.0, 1.0, 0.0, 0.0]}


def test_a_point_without_version_is_not_older(client: QdrantClient, collection: str):
    client.upsert(collection, [point(1, text="no version")])
    client.upsert(collection, [point(1, version=9)], update_filter=_older_than(9))
    assert payloads(client, collection) == {1: {"text": "no version"}}


def test_each_point_of_a_request_is_decided_alone(client: QdrantClient, collection: str):
    client.upsert(collection, [point(1, version=1), point(2, version=9)])
    client.upsert(collection, [point(i, version=5) for i in (1, 2, 3)], update_filter=_older_than(5))
    assert payloads(client, collection) == {1: {"version": 5}, 2: {"version": 9}, 3: {"version": 5}}


def test_each_operation_of_a_batch_has_its_own_condition(client: QdrantClient, collection: str):
    client.upsert(collection, [point(i, version=10) for i in (1, 2)])
    client.batch_update_points(
        collection, [_upsert_if_newer(1, 11), _upsert_if_newer(2, 9), _upsert_if_newer(3, 1)]
    )
    assert payloads(client, collection) == {1: {"version": 11}, 2: {"version": 10}, 3: {"version": 1}}


def test_later_operations_of_a_batch_see_the_earlier_ones(client: QdrantClient, collection: str):
    client.batch_update_points(
        collection, [_upsert_if_newer(1, 3), _upsert_if_newer(1, 2), _upsert_if_newer(1, 4)]
    )
    assert payloads(client, collection) == {1: {"version": 4}}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (models.UpdateMode.INSERT_ONLY, {1: {"n": "old"}, 2: {"n": "new"}}),
        (models.UpdateMode.UPDATE_ONLY, {1: {"n": "new"}}),
        (models.UpdateMode.UPSERT, {1: {"n": "new"}, 2: {"n": "new"}}),
    ],
)
def test_modes_of_writing(
    client: QdrantClient, collection: str, mode: models.UpdateMode, expected: dict[Any, Any]
):
    client.upsert(collection, [point(1, n="old")])
    client.upsert(collection, [point(1, n="new"), point(2, n="new")], update_mode=mode)
    assert payloads(client, collection) == expected


def test_deleting_only_what_is_not_newer(client: QdrantClient, collection: str):
    client.upsert(collection, [point(1, version=5), point(2, version=5)])
    for point_id, version in [(1, 4), (2, 5)]:
        condition = must(
            models.HasIdCondition(has_id=[point_id]), field("version", range=models.Range(lte=version))
        )
        client.delete(collection, models.FilterSelector(filter=condition))
    assert payloads(client, collection) == {1: {"version": 5}}


def _upsert_if_newer(point_id: int, version: int) -> models.UpsertOperation:
    points = [point(point_id, version=version)]
    return models.UpsertOperation(upsert=models.PointsList(points=points, update_filter=_older_than(version)))
