"""Hybrid recall in the real engine."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from qdrant_client import models

from tests.integration.qdrant.edge_process import EdgeProcess
from textmatch.documents import Document
from textmatch.filters import FieldMatch, Filter
from textmatch.index.bm25 import document_vector, query_vector
from textmatch.index.client import connect
from textmatch.index.index import Index
from textmatch.index.schema import dense_vector_params
from textmatch.index.search import SearchQuery
from textmatch.vectors import Embeddings, normalise

DIMENSION = 8
TEXTS = {
    "rm": "delete a folder and everything in it",
    "mv": "move a folder",
    "cat": "print a file",
    "删": "删除目录和其中的一切",
    "看": "查看文件",
}


@pytest.fixture(scope="module")
def qdrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = EdgeProcess(tmp_path_factory.mktemp("qdrant"))
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    assert server.stop() == 0


@pytest.fixture
async def index(qdrant: str) -> AsyncIterator[Index]:
    connected = Index(connect(qdrant), alias=f"alias-{uuid.uuid4().hex}")
    await connected.collections.prepare(f"tiny-{uuid.uuid4().hex[:12]}", DIMENSION)
    yield connected
    await connected.close()


def rows() -> Embeddings:
    return normalise(np.random.default_rng(0).standard_normal((len(TEXTS), DIMENSION)).astype(np.float32))


async def fill(index: Index) -> str:
    collection = await index.collection()
    documents = [Document(key, text, {"short": len(text) < 15}, version=1) for key, text in TEXTS.items()]
    await index.upsert(documents, rows(), model_id=collection)
    return collection


async def found(index: Index, query: SearchQuery) -> dict[str, tuple[float, float | None, float | None]]:
    collection = await index.collection()
    hits = await index.search(query, model_id=collection)
    documents = await index.documents([hit.point for hit in hits], model_id=collection)
    return {documents[hit.point].id: (hit.cosine, hit.bm25, hit.fused_ranks) for hit in hits}


def bm25(query: str, document: str, frequency: int) -> float:
    """One shared term; the formula with Qdrant's share in it."""
    rarity = math.log(1 + (len(TEXTS) - frequency + 0.5) / (frequency + 0.5))
    weights = dict(zip(document_vector(document).indices, document_vector(document).values, strict=True))
    return rarity * sum(weights.get(term, 0.0) for term in query_vector(query).indices)


@pytest.mark.parametrize(
    ("query", "expected"),
    [("Folder", {"rm": 2, "mv": 2}), ("delete!", {"rm": 1}), ("目", {"删": 1}), ("zebra", {})],
)
async def test_words_alone_find_what_has_them_and_score_it_by_bm25(
    index: Index, query: str, expected: dict[str, int]
):
    await fill(index)
    scores = await found(index, SearchQuery(5, text=query))
    assert scores == {
        key: (0.0, pytest.approx(bm25(query, TEXTS[key], frequency), rel=1e-4), None)
        for key, frequency in expected.items()
    }


async def test_both_ways_find_more_and_every_hit_has_both_scores(index: Index):
    await fill(index)
    nearest = rows()[2]
    scores = await found(index, SearchQuery(1, nearest, "删除", fuse_ranks=True))
    assert set(scores) == {"cat", "删"}
    assert scores["cat"][0] == pytest.approx(1.0, abs=1e-5)
    assert scores["cat"][1] == 0.0
    assert scores["删"][0] == pytest.approx(float(rows()[3] @ nearest), abs=1e-5)
    assert scores["删"][1] > 1.0
    assert 0.0 < scores["删"][2] < 1.0
    assert scores["cat"][2] == scores["删"][2]


async def test_what_is_first_both_ways_has_all_of_the_fused_ranks(index: Index):
    await fill(index)
    scores = await found(index, SearchQuery(5, rows()[0], "delete everything", fuse_ranks=True))
    assert scores["rm"][2] == pytest.approx(1.0)
    assert max(scores.values(), key=lambda one: one[2] or 0.0) == scores["rm"]


async def test_without_shared_words_dense_recall_is_all_there_is(index: Index):
    await fill(index)
    scores = await found(index, SearchQuery(2, rows()[0], "the of 的"))
    assert len(scores) == 2
    assert {one[1] for one in scores.values()} == {0.0}


async def test_filters_hold_for_both_ways(index: Index):
    await fill(index)
    short = Filter(must=(FieldMatch("short", (True,)),))
    scores = await found(index, SearchQuery(5, rows()[0], "folder file 查看", short))
    assert set(scores) == {"mv", "cat", "删", "看"}


@pytest.mark.parametrize(
    ("embedding", "text"), [(rows()[0], ""), (None, "folder 查看"), (rows()[0], "folder 查看")]
)
async def test_documents_come_along_if_asked_for(index: Index, embedding: Embeddings | None, text: str):
    collection = await fill(index)
    hits = await index.search(SearchQuery(2, embedding, text), model_id=collection)
    assert {hit.document for hit in hits} == {None}
    with_documents = await index.search(
        SearchQuery(2, embedding, text, with_documents=True), model_id=collection
    )
    documents = await index.documents([hit.point for hit in hits], model_id=collection)
    assert {hit.point: hit.document for hit in with_documents} == documents
    assert len(documents) >= 2


async def test_a_collection_made_before_bm25_keeps_working(qdrant: str):
    alias, collection = f"alias-{uuid.uuid4().hex}", f"old-{uuid.uuid4().hex[:12]}"
    client = connect(qdrant)
    await client.create_collection(collection, vectors_config=dense_vector_params(DIMENSION))
    create = models.CreateAlias(collection_name=collection, alias_name=alias)
    await client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    await client.close()
    index = Index(connect(qdrant), alias)
    await index.collections.prepare(collection, DIMENSION)
    await fill(index)
    assert not (await index.collections.info(collection)).has_lexical
    assert "rm" in await found(index, SearchQuery(2, rows()[0]))
    stored = await index.fetch(["rm"], with_embeddings=True)
    assert np.allclose(stored["rm"].embedding, rows()[0], atol=1e-6)
    await index.close()


async def test_notes_are_kept_beside_the_collection(index: Index):
    collection = await fill(index)
    assert (await index.collections.info(collection)).has_lexical
    await index.collections.note(collection, {"match_weights": {"lexical": 0.25, "calibration": None}})
    await index.collections.note(collection, {"other": [1, "二"]})
    notes = (await index.collections.info(collection)).notes
    assert notes == {"match_weights": {"lexical": 0.25, "calibration": None}, "other": [1, "二"]}
