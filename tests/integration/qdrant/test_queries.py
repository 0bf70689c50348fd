"""Nearest, hybrid and the other ways to rank."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, TypeAlias

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from qdrant_client import QdrantClient, models

from tests.integration.qdrant.conftest import DIMENSION, create_collection
from tests.integration.qdrant.points import field, must

Vectors: TypeAlias = npt.NDArray[np.float32]

_COUNT = 60


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """(_COUNT, DIMENSION), normalised."""
    drawn = np.random.default_rng(3).standard_normal((_COUNT, DIMENSION)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def filled(client: QdrantClient, vectors: Vectors) -> Iterator[str]:
    """Point i has the dense vector i, the sparse dimension i % 5 and a rare one of its own."""
    name = f"queries-{uuid.uuid4().hex}"
    create_collection(client, name)
    client.create_payload_index(name, "n", models.PayloadSchemaType.INTEGER, wait=True)
    client.create_payload_index(name, "group", models.PayloadSchemaType.KEYWORD, wait=True)
    points = [
        models.PointStruct(
            id=i,
            vector={
                "dense": vectors[i].tolist(),
                "sparse": models.SparseVector(indices=[i % 5, 100 + i], values=[1.0, 1.0]),
            },
            payload={"n": i, "group": f"g{i % 3}", "text": f"text {i}"},
        )
        for i in range(_COUNT)
    ]
    client.upsert(name, points, wait=True)
    yield name
    client.delete_collection(name)


def _ranked(vectors: Vectors, query: list[float]) -> list[int]:
    order: list[int] = np.argsort(-(vectors @ np.asarray(query, dtype=np.float32))).tolist()
    return order


def test_nearest_in_order_with_scores(client: QdrantClient, filled: str, vectors: Vectors):
    query = [0.5, -0.5, 0.5, 0.5]
    hits = client.query_points(filled, query=query, using="dense", limit=10, with_payload=["n"]).points
    assert [hit.id for hit in hits] == _ranked(vectors, query)[:10]
    assert [hit.score for hit in hits] == pytest.approx(
        [float(vectors[hit.id] @ query) for hit in hits], abs=1e-5
    )
    assert [hit.payload for hit in hits] == [{"n": hit.id} for hit in hits]


def test_offset_and_threshold(client: QdrantClient, filled: str, vectors: Vectors):
    query = [1.0, 0.0, 0.0, 0.0]
    order = _ranked(vectors, query)
    hits = client.query_points(filled, query=query, using="dense", limit=5, offset=3).points
    assert [hit.id for hit in hits] == order[3:8]
    hits = client.query_points(filled, query=query, using="dense", limit=_COUNT, score_threshold=0.5).points
    assert {hit.id for hit in hits} == {i for i in range(_COUNT) if vectors[i][0] >= 0.5}


def test_search_params_are_accepted(client: QdrantClient, filled: str, vectors: Vectors):
    query = [0.0, 1.0, 0.0, 0.0]
    for params in [models.SearchParams(hnsw_ef=64), models.SearchParams(exact=True, indexed_only=False)]:
        hits = client.query_points(filled, query=query, using="dense", limit=3, search_params=params).points
        assert [hit.id for hit in hits] == _ranked(vectors, query)[:3]


def test_nearest_to_a_stored_point_without_itself(client: QdrantClient, filled: str, vectors: Vectors):
    hits = client.query_points(filled, query=7, using="dense", limit=3).points
    assert [hit.id for hit in hits] == _ranked(vectors, vectors[7].tolist())[1:4]


def test_a_missing_example_is_not_found(client: QdrantClient, filled: str):
    with pytest.raises(grpc.RpcError) as caught:
        client.query_points(filled, query=10_000, using="dense")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_sparse_scores_weigh_rare_dimensions_more(client: QdrantClient, filled: str):
    query = models.SparseVector(indices=[2, 111], values=[1.0, 1.0])
    hits = client.query_points(filled, query=query, using="sparse", limit=3).points
    # Point 11 has the rare dimension, points 2, 7, 12, ... the common one.
    assert hits[0].id == 11
    assert hits[1].id % 5 == 2
    assert hits[0].score > hits[1].score > 0


@pytest.mark.parametrize(
    ("fusion", "expected_score"),
    [
        (models.FusionQuery(fusion=models.Fusion.RRF), 1 / 2 + 1 / 2),
        (models.RrfQuery(rrf=models.Rrf(k=60)), 1 / 60 + 1 / 60),
        (models.RrfQuery(rrf=models.Rrf(k=10, weights=[3.0, 1.0])), None),
        (models.FusionQuery(fusion=models.Fusion.DBSF), None),
    ],
)
def test_hybrid_puts_first_what_both_find(
    client: QdrantClient, filled: str, vectors: Vectors, fusion: Any, expected_score: float | None
):
    dense = models.Prefetch(query=vectors[11].tolist(), using="dense", limit=20)
    sparse = models.Prefetch(
        query=models.SparseVector(indices=[1, 111], values=[1.0, 1.0]), using="sparse", limit=20
    )
    hits = client.query_points(filled, prefetch=[dense, sparse], query=fusion, limit=5).points
    assert len(hits) == 5
    assert hits[0].id == 11
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    if expected_score is not None:
        assert hits[0].score == pytest.approx(expected_score, rel=0.05)


def test_filters_inside_prefetches(client: QdrantClient, filled: str):
    only = [
        models.Prefetch(
            query=[1.0, 0.0, 0.0, 0.0],
            using="dense",
            limit=50,
            filter=must(field("group", match=models.MatchValue(value=group))),
        )
        for group in ("g0", "g1")
    ]
    fusion = models.FusionQuery(fusion=models.Fusion.RRF)
    hits = client.query_points(filled, prefetch=only, query=fusion, limit=100).points
    assert {(hit.payload or {})["group"] for hit in hits} == {"g0", "g1"}
    outer = must(field("group", match=models.MatchValue(value="g1")))
    hits = client.query_points(filled, prefetch=only, query=fusion, query_filter=outer, limit=100).points
    assert {(hit.payload or {})["group"] for hit in hits} == {"g1"}


def test_rescoring_what_was_prefetched(client: QdrantClient, filled: str, vectors: Vectors):
    query = vectors[20].tolist()
    common = models.Prefetch(
        query=models.SparseVector(indices=[0], values=[1.0]), using="sparse", limit=_COUNT
    )
    hits = client.query_points(filled, prefetch=common, query=query, using="dense", limit=4).points
    assert [hit.id for hit in hits] == [i for i in _ranked(vectors, query) if i % 5 == 0][:4]


def test_sampling_and_plain_listing(client: QdrantClient, filled: str):
    sample = models.SampleQuery(sample=models.Sample.RANDOM)
    assert len({hit.id for hit in client.query_points(filled, query=sample, limit=20).points}) == 20
    assert [hit.id for hit in client.query_points(filled, limit=3).points] == [0, 1, 2]


def test_a_batch_of_queries_keeps_its_order(client: QdrantClient, filled: str, vectors: Vectors):
    requests = [
        models.QueryRequest(query=vectors[i].tolist(), using="dense", limit=1, with_payload=["n"])
        for i in (9, 4, 30)
    ]
    responses = client.query_batch_points(filled, requests)
    assert [response.points[0].id for response in responses] == [9, 4, 30]
    assert responses[0].points[0].payload == {"n": 9}


def _ordered(points: list[models.ScoredPoint]) -> list[models.ScoredPoint]:
    """Ranks tie, and the engine orders ties as it likes."""
    return sorted(points, key=lambda point: (-point.score, point.id))


def test_prefetches_that_a_batch_has_in_common_change_no_answer(
    client: QdrantClient, filled: str, vectors: Vectors
):
    query = vectors[7].tolist()
    prefetch = [
        models.Prefetch(query=query, using="dense", limit=9),
        models.Prefetch(query=3, using="dense", limit=8, filter=must(field("n", range=models.Range(lt=31)))),
    ]
    requests = [
        models.QueryRequest(prefetch=prefetch, query=query, using="dense", limit=30),
        models.QueryRequest(prefetch=prefetch, query=4, using="dense", limit=5, offset=2, with_payload=True),
        models.QueryRequest(prefetch=prefetch, query=models.FusionQuery(fusion=models.Fusion.RRF), limit=30),
        models.QueryRequest(prefetch=prefetch[:1], query=query, using="dense", limit=30),
        models.QueryRequest(
            prefetch=prefetch,
            query=query,
            using="dense",
            limit=30,
            score_threshold=0.2,
            filter=must(field("n", range=models.Range(gte=5))),
        ),
    ]
    together = client.query_batch_points(filled, requests)
    apart = [client.query_batch_points(filled, [request])[0] for request in requests]
    assert [_ordered(answer.points) for answer in together] == [_ordered(answer.points) for answer in apart]
    assert [len(answer.points) > 2 for answer in together] == [True] * 5


@pytest.mark.parametrize(
    "query", [{"query": [1.0, 2.0], "using": "dense"}, {"query": [1.0] * 4, "using": "unknown"}]
)
def test_impossible_queries_are_the_callers_fault(client: QdrantClient, filled: str, query: dict[str, Any]):
    with pytest.raises(grpc.RpcError) as caught:
        client.query_points(filled, **query)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_queries_that_the_engine_cannot_do_say_so(needs_standalone: None, client: QdrantClient, filled: str):
    with pytest.raises(grpc.RpcError) as caught:
        client.query_points_groups(filled, "group", query=[1.0] * 4, using="dense")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "/qdrant.Points/QueryGroups" in caught.value.details()
    formula = models.FormulaQuery(formula=models.SumExpression(sum=["$score", 1.0]))
    prefetch = models.Prefetch(query=[1.0] * 4, using="dense")
    with pytest.raises(grpc.RpcError) as caught:
        client.query_points(filled, prefetch=prefetch, query=formula)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "formula" in caught.value.details()
