"""Scores in the forms of Cohere, Jina, text-embeddings-inference and vLLM."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

DOCUMENTS = ["four letters", "four", "fo"]


@pytest.mark.parametrize("version", ["1", "2"])
async def test_documents_come_best_first(http: httpx.AsyncClient, version: str):
    body = {"query": "four", "documents": DOCUMENTS, "model": "pair"}
    answer = await http.post(f"/v{version}/rerank", json=body)
    assert answer.status_code == 200
    content = answer.json()
    assert content["results"] == [
        {"index": 1, "relevance_score": 1.0},
        {"index": 2, "relevance_score": 0.5},
        {"index": 0, "relevance_score": pytest.approx(1 / 3)},
    ]
    assert content["meta"] == {"api_version": {"version": version}}
    assert content["id"] == answer.headers["x-request-id"]


async def test_top_n_and_documents_with_other_members(http: httpx.AsyncClient):
    documents = ["no", {"text": "four", "title": "a", "page": 3}]
    body = {"query": "four", "documents": documents, "top_n": 1, "return_documents": True}
    answer = await http.post("/v1/rerank", json=body)
    assert answer.json()["results"] == [{"index": 1, "relevance_score": 1.0, "document": documents[1]}]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"query": "a", "documents": []}, "documents"),
        ({"query": "a", "documents": ["b", " "]}, "documents[1]"),
        ({"query": " ", "documents": ["b"]}, "query"),
        ({"query": "a", "documents": [{"title": "b"}]}, "documents[0].text"),
        ({"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
        ({"query": "a", "documents": ["b"], "max_chunks_per_doc": 3}, "max_chunks_per_doc"),
    ],
)
async def test_a_bad_request_names_its_item(http: httpx.AsyncClient, body: dict[str, Any], field: str):
    answer = await http.post("/v1/rerank", json=body)
    assert answer.status_code == 400
    assert [item["field"] for item in answer.json()["items"]] == [field]


async def test_rerank_of_text_embeddings_inference(http: httpx.AsyncClient):
    answer = await http.post("/rerank", json={"query": "four", "texts": DOCUMENTS[1:], "return_text": True})
    assert answer.json() == [
        {"index": 0, "score": 1.0, "text": "four"},
        {"index": 1, "score": 0.5, "text": "fo"},
    ]
    raw = await http.post("/rerank", json={"query": "four", "texts": ["fo"], "raw_scores": True})
    assert raw.json() == [{"index": 0, "score": 1.0}]
    long = await http.post("/rerank", json={"query": "a", "texts": ["a", "a" * 101], "truncate": False})
    assert (long.status_code, long.json()["items"][0]["field"]) == (400, "texts[1]")


@pytest.mark.parametrize(
    ("first", "second", "scores"),
    [("four", "fo", [0.5]), ("four", ["fo", "four"], [0.5, 1.0]), (["four", "a"], ["fo", "a"], [0.5, 1.0])],
)
async def test_scores_of_pairs(http: httpx.AsyncClient, first: Any, second: Any, scores: list[float]):
    answer = await http.post("/v1/score", json={"text_1": first, "text_2": second})
    assert [one["score"] for one in answer.json()["data"]] == scores


async def test_lists_of_different_lengths_are_no_pairs(http: httpx.AsyncClient):
    answer = await http.post("/v1/score", json={"text_1": ["a", "b"], "text_2": ["a", "b", "c"]})
    assert (answer.status_code, answer.json()["items"][0]["field"]) == (400, "text_1")
