"""Hybrid recall in the real engine."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from tests.support.collections import CONFIG, close_index, make_index, unique_config
from textmatch.documents import Document, point_id
from textmatch.filters import FieldMatch, Filter
from textmatch.index import search as search_module
from textmatch.index.bm25 import QueryVector, document_vector, query_vector
from textmatch.index.index import Index
from textmatch.index.search import SearchQuery
from textmatch.index.term_statistics import TermStatistics
from textmatch.vectors import Embeddings, normalise

DIMENSION = 8
TEXTS = {
    "rm": "delete a folder and everything in it",
    "mv": "move a folder",
    "cat": "print a file",
    "删": "删除目录和其中的一切",
    "看": "查看文件",
}


@pytest.fixture
async def index(qdrant_url: str) -> AsyncIterator[Index]:
    connected = make_index(qdrant_url, unique_config())
    await connected.collections.prepare(f"tiny-{uuid.uuid4().hex[:12]}", DIMENSION)
    yield connected
    await close_index(connected)


def rows() -> Embeddings:
    return normalise(np.random.default_rng(0).standard_normal((len(TEXTS), DIMENSION)).astype(np.float32))


async def fill(index: Index) -> str:
    collection = await index.model_in_use()
    documents = [Document(key, text, {"short": len(text) < 15}, version=1) for key, text in TEXTS.items()]
    await index.upsert(documents, rows(), model_id=collection)
    return collection


async def terms(index: Index, text: str) -> QueryVector | None:
    """The terms of a query, with their idf in the collection in use."""
    return query_vector(text, await index.term_statistics.get(await index.model_in_use(), 10.0))


async def found(index: Index, query: SearchQuery) -> dict[str, tuple[float | None, float | None]]:
    collection = await index.model_in_use()
    hits = await index.search(query, model_id=collection)
    documents = await index.documents([hit.point for hit in hits], model_id=collection)
    return {documents[hit.point].id: (hit.cosine, hit.lexical) for hit in hits}


def lexical(query: str, document: str) -> float:
    """The evidence by the formula."""
    documents = [np.array(document_vector(text).indices, dtype=np.uint32) for text in TEXTS.values()]
    vector = query_vector(query, TermStatistics.of(documents))
    assert vector is not None
    stored = document_vector(document)
    weights = dict(zip(stored.indices, stored.values, strict=True))
    pairs = zip(vector.indices, vector.values, strict=True)
    return vector.lexical(sum(value * weights.get(index, 0.0) for index, value in pairs))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Folder", {"rm", "mv"}),
        ("delete a folder!", {"rm", "mv"}),
        ("目", {"删"}),
        ("目录", {"删"}),
        ("a", {"rm", "mv", "cat"}),
        ("zebra", set()),
    ],
)
async def test_terms_alone_find_what_has_them_and_give_their_evidence(
    index: Index, query: str, expected: set[str]
):
    await fill(index)
    scores = await found(index, SearchQuery(5, terms=await terms(index, query)))
    assert scores == {key: (None, pytest.approx(lexical(query, TEXTS[key]), rel=1e-4)) for key in expected}


async def test_both_ways_find_more_and_every_hit_has_both_parts(index: Index):
    await fill(index)
    nearest = rows()[2]
    scores = await found(index, SearchQuery(1, nearest, await terms(index, "删除")))
    assert set(scores) == {"cat", "删"}
    assert scores["cat"] == (pytest.approx(1.0, abs=1e-5), 0.0)
    assert scores["删"][0] == pytest.approx(float(rows()[3] @ nearest), abs=1e-5)
    assert scores["删"][1] == pytest.approx(lexical("删除", TEXTS["删"]), rel=1e-4)


async def test_without_terms_dense_recall_is_all_there_is(index: Index):
    await fill(index)
    scores = await found(index, SearchQuery(2, rows()[0], await terms(index, "...")))
    assert len(scores) == 2
    assert {one[1] for one in scores.values()} == {None}


async def test_shards_do_not_change_the_evidence(qdrant_url: str, index: Index):
    """A shard with half of the documents finds the same evidence, because Qdrant adds no idf of its own."""
    await fill(index)
    vector = await terms(index, "delete a folder 删除")
    whole = await found(index, SearchQuery(5, terms=vector))
    shard = make_index(qdrant_url, unique_config())
    await shard.collections.prepare(f"tiny-{uuid.uuid4().hex[:12]}", DIMENSION)
    collection = await shard.model_in_use()
    documents = [Document(key, TEXTS[key], version=1) for key in ("rm", "看")]
    await shard.upsert(documents, rows()[[0, 4]], model_id=collection)
    part = await found(shard, SearchQuery(5, terms=vector))
    assert part == {"rm": whole["rm"]}
    await close_index(shard)


async def test_term_statistics_are_those_of_the_stored_documents(index: Index):
    collection = await fill(index)
    statistics = await index.term_statistics.get(collection, 10.0)
    expected = TermStatistics.of(
        np.array(document_vector(text).indices, dtype=np.uint32) for text in TEXTS.values()
    )
    assert statistics.document_count == len(TEXTS)
    assert statistics.indices.tolist() == expected.indices.tolist()
    assert statistics.frequencies.tolist() == expected.frequencies.tolist()


async def test_only_the_first_documents_are_counted(index: Index, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search_module, "SAMPLE_DOCUMENTS", 3)
    monkeypatch.setattr(search_module, "_SAMPLE_PAGE", 2)
    collection = await fill(index)
    first = sorted(TEXTS, key=point_id)[:3]
    expected = TermStatistics.of(
        np.array(document_vector(TEXTS[key]).indices, dtype=np.uint32) for key in first
    )
    statistics = await index.term_statistics.get(collection, 10.0)
    assert statistics.document_count == 3
    assert statistics.indices.tolist() == expected.indices.tolist()


async def test_filters_hold_for_both_ways(index: Index):
    await fill(index)
    short = Filter(must=(FieldMatch("short", (True,)),))
    scores = await found(index, SearchQuery(5, rows()[0], await terms(index, "folder file 查看"), short))
    assert set(scores) == {"mv", "cat", "删", "看"}


@pytest.mark.parametrize(
    ("embedding", "text"), [(rows()[0], ""), (None, "folder 查看"), (rows()[0], "folder 查看")]
)
async def test_documents_come_along_if_asked_for(index: Index, embedding: Embeddings | None, text: str):
    collection = await fill(index)
    vector = await terms(index, text)
    hits = await index.search(SearchQuery(2, embedding, vector), model_id=collection)
    assert {hit.document for hit in hits} == {None}
    with_documents = await index.search(
        SearchQuery(2, embedding, vector, with_documents=True), model_id=collection
    )
    documents = await index.documents([hit.point for hit in hits], model_id=collection)
    assert {hit.point: hit.document for hit in with_documents} == documents
    assert len(documents) >= 2


async def test_a_collection_may_do_without_bm25(qdrant_url: str):
    collection = f"tiny-{uuid.uuid4().hex[:12]}"
    index = make_index(qdrant_url, replace(unique_config(), lexical=False))
    await index.collections.prepare(collection, DIMENSION)
    await fill(index)
    assert not (await index.collections.info(collection)).has_lexical
    assert "rm" in await found(index, SearchQuery(2, rows()[0]))
    stored = await index.fetch(["rm"], with_embeddings=True)
    assert np.allclose(stored["rm"].embedding, rows()[0], atol=1e-6)
    await close_index(index)


async def test_notes_are_kept_beside_the_collection(index: Index):
    collection = await fill(index)
    assert (await index.collections.info(collection)).has_lexical
    await index.collections.note(collection, {"score_fusion": {"lexical": 0.25, "other": None}})
    await index.collections.note(collection, {"other": [1, "二"]})
    notes = dict((await index.collections.info(collection)).notes)
    assert notes.pop("collection")["generation"] == CONFIG.generation
    assert notes.pop("roles")["in_use"] == collection
    assert notes == {"score_fusion": {"lexical": 0.25, "other": None}, "other": [1, "二"]}
