"""Writing and reading points."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from tests.integration.qdrant.points import field, must, payloads, point

_INT64_MAX = 2**63 - 1
_UUID = "550e8400-e29b-41d4-a716-446655440000"

_PAYLOADS: list[dict[str, Any]] = [
    {},
    {"text": "在哪里可以充值？ 😀 \u0000 é"},
    {"中文键": {"内": [1, "二", {"三": None}]}},
    {"null": None, "empty list": [], "empty object": {}, "empty text": ""},
    {"largest": _INT64_MAX, "smallest": -(2**63), "zero": 0, "tiny": 5e-324, "huge": 1.5e308},
    {"true": True, "false": False, "one": 1, "one as float": 1.0},
    {"nested": {"lists": [[1, 2], [], [[None]]]}},
]


@pytest.mark.parametrize("payload", _PAYLOADS)
def test_payloads_come_back_as_they_went(client: QdrantClient, collection: str, payload: dict[str, Any]):
    client.upsert(collection, [models.PointStruct(id=1, vector={}, payload=payload)])
    stored = client.retrieve(collection, [1])[0].payload
    assert stored == payload
    assert {key: type(value) for key, value in (stored or {}).items()} == {
        key: type(value) for key, value in payload.items()
    }


def test_ids_are_numbers_or_uuids(client: QdrantClient, collection: str):
    ids = [0, 2**64 - 1, _UUID]
    client.upsert(collection, [point(one) for one in ids])
    assert {record.id for record in client.retrieve(collection, ids)} == set(ids)
    with pytest.raises(grpc.RpcError) as caught:
        client.upsert(collection, [point("not a uuid")])
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_vectors_come_back(client: QdrantClient, collection: str):
    sparse = models.SparseVector(indices=[9, 3], values=[1.5, -2.0])
    vectors = {"dense": [0.0, 2.0, 0.0, 0.0], "sparse": sparse}
    client.upsert(collection, [models.PointStruct(id=1, vector=vectors)])
    stored = client.retrieve(collection, [1], with_vectors=True)[0].vector
    assert stored == {
        "dense": [0.0, 1.0, 0.0, 0.0],  # cosine vectors are stored normalised
        "sparse": models.SparseVector(indices=[3, 9], values=[-2.0, 1.5]),
    }
    assert client.retrieve(collection, [1], with_vectors=["sparse"])[0].vector == {"sparse": stored["sparse"]}
    assert client.retrieve(collection, [1])[0].vector is None


def test_parts_of_the_payload(client: QdrantClient, collection: str):
    client.upsert(collection, [point(1, a=1, b={"c": 2, "d": 3})])
    assert client.retrieve(collection, [1], with_payload=["b.c"])[0].payload == {"b": {"c": 2}}
    without = models.PayloadSelectorExclude(exclude=["b"])
    assert client.retrieve(collection, [1], with_payload=without)[0].payload == {"a": 1}
    assert not client.retrieve(collection, [1], with_payload=False)[0].payload


def test_a_wrong_vector_size_names_both_and_writes_nothing(client: QdrantClient, collection: str):
    with pytest.raises(grpc.RpcError) as caught:
        client.upsert(collection, [point(1), point(2, [1.0, 2.0, 3.0])])
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "Vector dimension error: expected dim: 4, got 3" in caught.value.details()
    assert client.count(collection).count == 0


@pytest.mark.parametrize(
    "vectors",
    [
        {"unknown": [1.0, 2.0, 3.0, 4.0]},
        {"sparse": [1.0, 2.0, 3.0, 4.0]},
        {"dense": models.SparseVector(indices=[1], values=[1.0])},
        {"sparse": models.SparseVector(indices=[1, 1], values=[1.0, 2.0])},
        {"sparse": models.SparseVector(indices=[1, 2], values=[1.0])},
    ],
)
def test_impossible_vectors_are_refused(client: QdrantClient, collection: str, vectors: dict[str, Any]):
    with pytest.raises(grpc.RpcError) as caught:
        client.upsert(collection, [models.PointStruct(id=1, vector=vectors)])
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert client.count(collection).count == 0


def test_deleting_by_id_and_by_filter(client: QdrantClient, collection: str):
    client.upsert(collection, [point(i, version=i) for i in range(6)])
    client.delete(collection, models.PointIdsList(points=[0, 99]))
    is_old = must(models.HasIdCondition(has_id=[1, 2, 3]), field("version", range=models.Range(lte=2)))
    client.delete(collection, models.FilterSelector(filter=is_old))
    assert set(payloads(client, collection)) == {3, 4, 5}


def test_a_batch_is_applied_in_order(client: QdrantClient, collection: str):
    results = client.batch_update_points(
        collection,
        [
            models.UpsertOperation(upsert=models.PointsList(points=[point(1, n=1), point(2, n=1)])),
            models.UpsertOperation(upsert=models.PointsList(points=[point(1, n=2)])),
            models.DeleteOperation(delete=models.PointIdsList(points=[2])),
            models.UpsertOperation(upsert=models.PointsList(points=[point(3, n=3)])),
        ],
    )
    assert [result.status for result in results] == [models.UpdateStatus.COMPLETED] * 4
    assert payloads(client, collection) == {1: {"n": 2}, 3: {"n": 3}}


def test_scrolling_meets_every_point_once(client: QdrantClient, collection: str):
    client.upsert(collection, [point(i) for i in range(25)])
    seen: list[Any] = []
    offset: Any = None
    while True:
        records, offset = client.scroll(collection, limit=10, offset=offset)
        seen += [record.id for record in records]
        if offset is None:
            break
    assert sorted(seen) == list(range(25))


def test_status_says_whether_the_caller_waited(client: QdrantClient, collection: str):
    waited = client.upsert(collection, [point(1)], wait=True)
    not_waited = client.upsert(collection, [point(2)], wait=False)
    assert waited.status == models.UpdateStatus.COMPLETED
    assert not_waited.status == models.UpdateStatus.ACKNOWLEDGED


async def test_concurrent_writers_lose_nothing(async_client: AsyncQdrantClient, collection: str):
    async def write(writer: int) -> None:
        for start in range(0, 60, 12):
            ids = range(writer * 1_000 + start, writer * 1_000 + start + 12)
            await async_client.upsert(collection, [point(i, writer=writer) for i in ids], wait=True)

    async def read() -> None:
        for _ in range(20):
            await async_client.query_points(collection, query=[1.0, 0.0, 0.0, 0.0], using="dense")

    await asyncio.gather(*(write(writer) for writer in range(8)), read())
    assert (await async_client.count(collection)).count == 8 * 60


async def test_one_winner_among_concurrent_writers_of_a_point(
    async_client: AsyncQdrantClient, collection: str
):
    point_id = str(uuid.uuid4())

    async def write(version: int) -> None:
        is_older = must(field("version", range=models.Range(lt=version)))
        await async_client.upsert(
            collection, [point(point_id, version=version)], update_filter=is_older, wait=True
        )

    await asyncio.gather(*(write(version) for version in [3, 9, 1, 7, 5, 8, 2, 6, 4]))
    assert (await async_client.retrieve(collection, [point_id]))[0].payload == {"version": 9}
