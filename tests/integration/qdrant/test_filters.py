"""Every kind of condition, on the same seven points, without and with payload indexes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import grpc
import pytest
from qdrant_client import QdrantClient, models

from tests.integration.qdrant.conftest import create_collection
from tests.integration.qdrant.points import field, must, must_not, point

_UUID = "550e8400-e29b-41d4-a716-446655440000"
_POINTS = [
    point(1, color="red", size=1, price=1.5, sold=True, at="2024-01-01T00:00:00Z"),
    point(2, color="red", size=2, price=2.5, sold=False, at="2024-06-01T12:00:00+02:00"),
    point(3, color=["green", "blue"], size=3, price=-1.0, at="2025-01-01"),
    point(4, color="红色", size=[1, 5], tags=[]),
    point(5, color=None, size=2**53, note={"by": "ann", "stars": 5}),
    point(6, notes=[{"by": "ann", "stars": 1}, {"by": "bob", "stars": 5}]),
    point(_UUID, notes=[{"by": "ann", "stars": 5}], text="the quick brown fox"),
]
_INDEXES = {
    "color": models.PayloadSchemaType.KEYWORD,
    "size": models.PayloadSchemaType.INTEGER,
    "price": models.PayloadSchemaType.FLOAT,
    "sold": models.PayloadSchemaType.BOOL,
    "at": models.PayloadSchemaType.DATETIME,
    "text": models.PayloadSchemaType.TEXT,
    "note.by": models.PayloadSchemaType.KEYWORD,
}
_BY_ANN_WITH_5_STARS = must(
    field("by", match=models.MatchValue(value="ann")), field("stars", range=models.Range(gte=5))
)

_CASES = {
    "match text": (must(field("color", match=models.MatchValue(value="red"))), {1, 2}),
    "match one of a list": (must(field("color", match=models.MatchValue(value="blue"))), {3}),
    "match Chinese": (must(field("color", match=models.MatchValue(value="红色"))), {4}),
    "match prefix": (must(field("color", match=models.MatchPrefix(prefix="r"))), {1, 2}),
    "match Chinese prefix": (must(field("color", match=models.MatchPrefix(prefix="红"))), {4}),
    "match integer": (must(field("size", match=models.MatchValue(value=1))), {1, 4}),
    "match flag": (must(field("sold", match=models.MatchValue(value=False))), {2}),
    "match any text": (must(field("color", match=models.MatchAny(any=["green", "红色"]))), {3, 4}),
    "match any integer": (must(field("size", match=models.MatchAny(any=[2, 5]))), {2, 4}),
    "match any of nothing": (must(field("size", match=models.MatchAny(any=[]))), set()),
    "match except": (must(field("color", match=models.MatchExcept(**{"except": ["red"]}))), {3, 4}),
    "match inside an object": (must(field("note.by", match=models.MatchValue(value="ann"))), {5}),
    "match inside a list": (must(field("notes[].by", match=models.MatchValue(value="bob"))), {6}),
    "range of floats": (must(field("price", range=models.Range(gt=-1.0, lte=2.5))), {1, 2}),
    "range of integers": (must(field("size", range=models.Range(gte=3, lt=10))), {3, 4}),
    "range of large integers": (must(field("size", range=models.Range(gte=2**53))), {5}),
    "range of times": (
        must(field("at", range=models.DatetimeRange(gt="2024-01-01T00:00:00Z", lt="2024-06-01T10:00:01Z"))),
        {2},
    ),
    "until a time": (must(field("at", range=models.DatetimeRange(lte="2024-01-01T00:00:00Z"))), {1}),
    "must not": (must_not(field("color", match=models.MatchValue(value="red"))), {3, 4, 5, 6, _UUID}),
    "should": (
        models.Filter(
            should=[
                field("size", match=models.MatchValue(value=3)),
                field("sold", match=models.MatchValue(value=True)),
            ]
        ),
        {1, 3},
    ),
    "min should": (
        models.Filter(
            min_should=models.MinShould(
                conditions=[
                    field("color", match=models.MatchValue(value="red")),
                    field("size", match=models.MatchValue(value=2)),
                    field("sold", match=models.MatchValue(value=False)),
                ],
                min_count=2,
            )
        ),
        {2},
    ),
    "filter inside a filter": (
        must(
            must_not(field("sold", match=models.MatchValue(value=True))),
            field("color", match=models.MatchValue(value="red")),
        ),
        {2},
    ),
    "nested": (
        must(models.NestedCondition(nested=models.Nested(key="notes", filter=_BY_ANN_WITH_5_STARS))),
        {_UUID},
    ),
    "is empty": (
        must(models.IsEmptyCondition(is_empty=models.PayloadField(key="color"))),
        {5, 6, _UUID},
    ),
    "an empty list is empty": (
        must(models.IsEmptyCondition(is_empty=models.PayloadField(key="tags"))),
        {1, 2, 3, 4, 5, 6, _UUID},
    ),
    "is not empty": (must_not(models.IsEmptyCondition(is_empty=models.PayloadField(key="price"))), {1, 2, 3}),
    "is null": (must(models.IsNullCondition(is_null=models.PayloadField(key="color"))), {5}),
    "has id": (must(models.HasIdCondition(has_id=[2, _UUID, 99])), {2, _UUID}),
    "has vector": (must(models.HasVectorCondition(has_vector="sparse")), set()),
    "number of values": (must(field("color", values_count=models.ValuesCount(gt=1))), {3}),
    "everything": (models.Filter(), {1, 2, 3, 4, 5, 6, _UUID}),
}


@pytest.fixture(scope="module", params=["without indexes", "with indexes"])
def filled(client: QdrantClient, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"filters-{uuid.uuid4().hex}"
    create_collection(client, name)
    if request.param == "with indexes":
        for key, kind in _INDEXES.items():
            client.create_payload_index(name, key, kind, wait=True)
    client.upsert(name, _POINTS, wait=True)
    yield name
    client.delete_collection(name)


@pytest.mark.parametrize("case", _CASES)
def test_finds_exactly_what_fits(client: QdrantClient, filled: str, case: str):
    condition, expected = _CASES[case]
    records, _ = client.scroll(filled, condition, limit=100)
    assert {record.id for record in records} == expected
    assert client.count(filled, condition, exact=True).count == len(expected)
    hits = client.query_points(
        filled, query=[1.0, 0.0, 0.0, 0.0], using="dense", query_filter=condition, limit=100
    ).points
    assert {hit.id for hit in hits} == expected


def test_words_of_a_text(client: QdrantClient, collection: str):
    client.create_payload_index(collection, "text", models.PayloadSchemaType.TEXT, wait=True)
    client.upsert(collection, _POINTS, wait=True)
    condition = must(field("text", match=models.MatchText(text="fox quick")))
    assert client.count(collection, condition).count == 1


@pytest.mark.parametrize(
    "condition",
    [
        field("a[b", match=models.MatchValue(value=1)),
        models.HasIdCondition(has_id=["not a uuid"]),
    ],
)
def test_a_bad_filter_is_the_callers_fault(
    client: QdrantClient, collection: str, condition: models.Condition
):
    with pytest.raises(grpc.RpcError) as caught:
        client.count(collection, models.Filter.model_construct(must=[condition]))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
