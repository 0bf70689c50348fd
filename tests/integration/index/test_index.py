"""The index over the real Qdrant engine."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from tests.support.collections import client_of, close_index, make_index, unique_config
from textmatch.documents import Document, content_hash, text_hash
from textmatch.errors import DependencyUnavailable, InvalidInput, ModelMismatch
from textmatch.filters import (
    FieldExists,
    FieldIsNull,
    FieldMatch,
    FieldPrefix,
    FieldRange,
    FieldTimeRange,
    Filter,
    HasId,
    parse_time,
)
from textmatch.index.bm25 import query_vector
from textmatch.index.client import CollectionGone, connect
from textmatch.index.index import Index
from textmatch.index.points import DeleteCondition
from textmatch.index.search import SearchQuery
from textmatch.index.term_statistics import UNKNOWN
from textmatch.vectors import Embeddings, normalise

DIMENSION = 8
MODEL = "tiny-0123456789ab"


@pytest.fixture
async def index(qdrant_url: str) -> AsyncIterator[Index]:
    """An index with an alias and a collection of its own."""
    connected = make_index(qdrant_url, unique_config())
    await connected.collections.prepare(unique_model(), DIMENSION)
    yield connected
    await close_index(connected)


def unique_model() -> str:
    return f"tiny-{uuid.uuid4().hex[:12]}"


def embedding(seed: int) -> Embeddings:
    return normalise(np.random.default_rng(seed).standard_normal((1, DIMENSION)).astype(np.float32))


async def write(index: Index, *documents: Document) -> None:
    rows = np.concatenate([embedding(hash(one.text) % 1000) for one in documents])
    await index.upsert(documents, rows, model_id=await index.model_in_use())


async def test_nothing_is_found_before_the_first_collection(qdrant_url: str):
    index = make_index(qdrant_url, unique_config())
    assert await index.model_in_use() == ""
    assert await index.count() == 0
    assert await index.fetch(["a"]) == {}
    assert await index.delete({"a": 1}) == 0
    assert [page async for page in index.find_versions(DeleteCondition(Filter()))] == []
    with pytest.raises(CollectionGone, match="missing-000000000000"):
        await index.search(SearchQuery(5, embedding(1)[0]), model_id="missing-000000000000")
    await close_index(index)


async def test_what_was_written_comes_back_whole(index: Index):
    document = Document(
        "文档/1 🙂", "删除目录 and everything in it", {"k": [1, None, {"深": True}], "n": 2.5}, 7
    )
    await write(index, document)
    stored = (await index.fetch([document.id, "missing"], with_embeddings=True))[document.id]
    assert stored.document == document
    assert stored.text_hash == text_hash(document.text)
    assert stored.content_hash == content_hash(document)
    assert stored.model_id == await index.model_in_use()
    assert np.allclose(stored.embedding, embedding(hash(document.text) % 1000)[0], atol=1e-6)


async def test_the_newest_version_wins_whatever_the_order(index: Index):
    versions = [Document("a", f"text {version}", version=version) for version in range(1, 9)]
    random.Random(0).shuffle(versions)
    for document in versions:
        await write(index, document)
    assert (await index.fetch(["a"]))["a"].document.version == 8
    assert await index.count() == 1


async def test_one_write_may_hold_many_versions_of_many_documents(index: Index):
    await write(index, Document("a", "old", version=5), Document("b", "new", version=5))
    await write(
        index,
        Document("a", "stale", version=4),
        Document("b", "newer", version=6),
        Document("b", "mid", version=5),
    )
    stored = await index.fetch(["a", "b"])
    assert {key: value.document.text for key, value in stored.items()} == {"a": "old", "b": "newer"}


async def test_the_same_version_again_changes_nothing(index: Index):
    await write(index, Document("a", "first", version=5))
    await write(index, Document("a", "second", version=5))
    assert (await index.fetch(["a"]))["a"].document.text == "first"


async def test_delete_spares_what_is_newer(index: Index):
    await write(index, Document("a", "text", version=5), Document("b", "text", version=9))
    assert await index.delete({"a": 5, "b": 8, "c": 3}) == 1
    assert set(await index.fetch(["a", "b"])) == {"b"}


async def test_recall_returns_the_nearest_first(index: Index):
    documents = [Document(f"d{number}", f"text {number}", version=1) for number in range(50)]
    rows = np.concatenate([embedding(number) for number in range(50)])
    await index.upsert(documents, rows, model_id=await index.model_in_use())
    hits = await index.search(SearchQuery(5, embedding(7)[0]), model_id=await index.model_in_use())
    hits.sort(key=lambda hit: -hit.cosine)
    documents = await index.documents([hit.point for hit in hits], model_id=await index.model_in_use())
    exact = np.argsort(-(rows @ embedding(7)[0]))[:5]
    assert [documents[hit.point].id for hit in hits] == [f"d{number}" for number in exact]
    assert hits[0].cosine == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Filter(), {"a", "b", "c"}),
        (Filter(must=(FieldMatch("kind", ("function",)),)), {"a"}),
        (Filter(must=(FieldMatch("tags", ("y", "z")),)), {"a", "b"}),
        (Filter(must=(FieldMatch("public", (True,)),)), {"a"}),
        (Filter(must=(FieldMatch("year", (2020, 2021)),)), {"a", "b"}),
        (Filter(must=(FieldRange("year", gte=2021),)), {"b", "c"}),
        (Filter(must=(FieldRange("author.age", lt=40),)), {"b"}),
        (Filter(must_not=(FieldExists("tags"),)), {"c"}),
        (Filter(should=(FieldMatch("kind", ("function",)), FieldRange("year", gt=2021))), {"a", "c"}),
        (
            Filter(
                must=(Filter(should=(FieldMatch("year", (2020,)), FieldMatch("year", (2022,)))),),
                must_not=(FieldMatch("kind", ("function",)),),
            ),
            {"c"},
        ),
        (Filter(must=(FieldMatch("price", (9.5,)),)), {"a"}),
        (Filter(must=(FieldMatch("price", (9.5, 12)),)), {"a", "b"}),
        (Filter(must=(FieldMatch("price", (12,)),)), {"b"}),
        (Filter(must=(FieldTimeRange("at", gte=parse_time("2024-01-01")),)), {"a", "b"}),
        (Filter(must=(FieldTimeRange("at", gt=parse_time("2024-01-01")),)), {"b"}),
        (Filter(must=(FieldTimeRange("at", lt=parse_time("2024-01-01T01:00:00+01:00")),)), {"c"}),
        (Filter(must=(FieldTimeRange("kind", gte=parse_time("2024-01-01")),)), set()),
        (Filter(must=(FieldPrefix("kind", "cl"),)), {"b", "c"}),
        (Filter(must=(FieldPrefix("tags", "y"),)), {"a"}),
        (Filter(must=(FieldPrefix("作者", "深"),)), {"c"}),
        (Filter(must=(FieldIsNull("old"),)), {"c"}),
        (Filter(must=(HasId(("a", "c", "missing")),)), {"a", "c"}),
        (Filter(must_not=(HasId(("a",)),)), {"b", "c"}),
        (Filter(must=(FieldMatch("id", ("b",)),)), {"a"}),
        (
            Filter(
                should=(
                    FieldMatch("public", (False,)),
                    FieldRange("year", gt=2020),
                    FieldPrefix("kind", "f"),
                ),
                min_should=2,
            ),
            {"b"},
        ),
    ],
)
async def test_filters(index: Index, condition: Filter, expected: set[str]):
    attributes = {
        "a": {
            "kind": "function",
            "tags": ["x", "y"],
            "public": True,
            "year": 2020,
            "author": {"age": 50},
            "price": 9.5,
            "at": "2024-01-01",
            "id": "b",
        },
        "b": {
            "kind": "class",
            "tags": ["z"],
            "public": False,
            "year": 2021,
            "author": {"age": 30},
            "price": 12,
            "at": "2024-01-01T23:30:00-02:00",
        },
        "c": {
            "kind": "class",
            "tags": [],
            "year": 2022,
            "at": "2023-12-31 23:59:59",
            "old": None,
            "作者": "深度",
        },
    }
    await write(index, *(Document(key, f"{key} a1", value, version=1) for key, value in attributes.items()))
    found = [one async for page in index.find_versions(DeleteCondition(condition, 1)) for one in page]
    assert set(found) == expected
    assert await index.count_matching(DeleteCondition(condition, 1)) == len(expected)
    assert await index.count_matching(DeleteCondition(condition, 0)) == 0
    for query in (
        SearchQuery(10, embedding(1)[0], None, condition),
        SearchQuery(10, None, query_vector("b c a1", UNKNOWN), condition),
    ):
        hits = await index.search(query, model_id=await index.model_in_use())
        documents = await index.documents([hit.point for hit in hits], model_id=await index.model_in_use())
        assert {one.id for one in documents.values()} == expected


@pytest.mark.parametrize("name", ["two words", "作者", "a[", "9-lives", "k'"])
async def test_attributes_may_have_any_name_without_dots_and_quotes(index: Index, name: str):
    await write(index, Document("a", "a", {name: {name: 1}}, version=1), Document("b", "b", version=1))
    condition = Filter(must=(FieldMatch(f"{name}.{name}", (1,)), FieldExists(f"{name}.{name}")))
    assert [page async for page in index.find_versions(DeleteCondition(condition, 1))] == [{"a": 1}]


async def test_a_search_by_filter_goes_through_many_pages(index: Index):
    documents = [Document(f"d{number}", "text", version=1) for number in range(2_100)]
    await index.upsert(documents, np.tile(embedding(1), (2_100, 1)), model_id=await index.model_in_use())
    pages = [page async for page in index.find_versions(DeleteCondition(Filter()))]
    assert len(pages) == 3
    assert {one for page in pages for one in page} == {document.id for document in documents}


async def test_documents_that_match_any_of_many_filters_are_found_at_once(index: Index):
    await write(index, *(Document(one, one, {"n": 1}, version) for version, one in enumerate("abcd", 1)))
    condition = Filter(must=(FieldMatch("n", (1,)),))
    others = [DeleteCondition(Filter(must=(FieldMatch("n", (number,)),)), 9) for number in range(2, 100)]
    ids = ["b", "c", "d", "e"]
    assert await index.find_versions_of(ids, [*others, DeleteCondition(condition, 3)]) == {"b": 2, "c": 3}
    assert await index.find_versions_of(ids, [*others, DeleteCondition(condition, 1)]) == {}
    assert await index.find_versions_of(ids, []) == {}


async def test_a_delete_by_filter_spares_newer_versions_and_other_ids(index: Index):
    await write(index, *(Document(one, one, {"n": 1}, version) for version, one in enumerate("abcd", 1)))
    condition = Filter(must=(FieldMatch("n", (1,)),))
    await index.delete_matching(DeleteCondition(condition, 3), ids=["b", "d"])
    assert set(await index.fetch("abcd")) == {"a", "c", "d"}
    await index.delete_matching(DeleteCondition(condition, 3))
    assert set(await index.fetch("abcd")) == {"d"}


async def test_a_delete_by_filter_spares_what_was_accepted_after_it(index: Index):
    now_us = 1_800_000_000_000_000
    accepted = {"a": 0, "b": now_us, "c": now_us + 1}
    documents = (Document(one, one, version=9, accepted_us=at) for one, at in accepted.items())
    await write(index, *documents)
    condition = DeleteCondition(Filter(), accepted_until=now_us)
    assert await index.find_versions_of("abc", [condition]) == {"a": 9, "b": 9}
    await index.delete_matching(condition)
    assert set(await index.fetch("abc")) == {"c"}


async def test_a_delete_of_many_versions_is_two_round_trips(index: Index, monkeypatch: pytest.MonkeyPatch):
    documents = [Document(f"d{number}", "text", version=number) for number in range(1, 301)]
    await index.upsert(documents, np.tile(embedding(1), (300, 1)), model_id=await index.model_in_use())
    model_id = await index.model_in_use()
    calls: list[str] = []
    client = client_of(index)
    for method in ("retrieve", "batch_update_points", "count", "delete", "scroll"):
        original = getattr(client, method)

        async def counted(*args: Any, method: str = method, original: Any = original, **kwargs: Any) -> Any:
            calls.append(method)
            return await original(*args, **kwargs)

        monkeypatch.setattr(client, method, counted)
    cut = {one.id: one.version - one.version % 2 for one in documents}
    assert await index.delete_from(model_id, cut) == 150
    assert calls == ["retrieve", "batch_update_points"]


async def test_a_field_name_that_qdrant_cannot_read_is_invalid_input(index: Index):
    condition = Filter(must=(FieldMatch('a"b', ("x",)),))
    with pytest.raises(
        InvalidInput,
        match="filter field 'a\"b': must be parts joined by dots, none of them empty or with a double quote",
    ):
        await index.search(
            SearchQuery(10, embedding(1)[0], None, condition), model_id=await index.model_in_use()
        )


async def test_another_models_collection_is_a_mismatch_naming_both(index: Index):
    current = await index.model_in_use()
    with pytest.raises(ModelMismatch) as raised:
        await index.collections.prepare("other-000000000000", DIMENSION)
    assert (raised.value.index_model_id, raised.value.encoder_model_id) == (current, "other-000000000000")


async def test_two_can_prepare_the_same_collection_at_once(qdrant_url: str):
    config, model = unique_config(), unique_model()
    first, second = make_index(qdrant_url, config), make_index(qdrant_url, config)
    await first.collections.prepare(model, DIMENSION)
    await second.collections.prepare(model, DIMENSION)
    assert await first.model_in_use() == await second.model_in_use() == model
    await close_index(first)
    await close_index(second)


async def test_a_dead_qdrant_is_unavailable_and_says_so():
    index = make_index("http://127.0.0.1:1", timeout_seconds=1)
    with pytest.raises(DependencyUnavailable, match="Qdrant does not answer"):
        await index.model_in_use()
    await close_index(index)


@pytest.mark.parametrize("url", ["127.0.0.1:6334", "ftp://host", "http://"])
def test_a_url_that_is_none_is_refused(url: str):
    with pytest.raises(InvalidInput, match="TEXTMATCH_QDRANT_URL"):
        connect(url)


async def test_a_filter_on_a_type_that_never_occurs_is_told(index: Index):
    model_id = await index.model_in_use()
    await write(
        index,
        *(
            Document(f"d{n}", "text", {"year": str(n), "a b": {"深": n}, "tags": [{"x": n}]}, version=1)
            for n in range(3)
        ),
    )
    warnings = await index.filter_warnings(Filter(must=(FieldRange("year", gte=2.0),)), model_id=model_id)
    assert warnings == (
        '"year" is a string in all 3 documents that have it, of a sample of 3; a number matches none of them',
    )
    for fine in (
        FieldMatch("a b.深", (7,)),
        FieldMatch("tags[].x", (7,)),
        FieldMatch("tags[0].x", (7,)),
        FieldMatch("year", ("7",)),
        HasId(("x",)),
    ):
        assert await index.filter_warnings(Filter(must=(fine,)), model_id=model_id) == ()


async def test_fingerprints_say_what_a_write_would_change(index: Index):
    document = Document("a", "text", {"n": 1}, version=3)
    await write(index, document)
    found = await index.fingerprints(["a", "missing"])
    assert {key: (one.version, one.content_hash) for key, one in found.items()} == {
        "a": (3, content_hash(document))
    }
