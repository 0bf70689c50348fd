"""Clients of OpenAI and Cohere, LlamaIndex and Qdrant's examples, unmodified but for base URL and key."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import cohere
import httpx
import numpy as np
import openai
import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

TEXTS = ["the cat sits on the mat", "a dog runs in the park", "where is the cat"]
QUERY = "the cat sits on the mat"


@pytest.fixture
async def openai_client(encoder_gateway: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{encoder_gateway}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_embeddings_of_openai_are_those_of_the_encoder(
    openai_client: openai.AsyncOpenAI, encoder_gateway: str
):
    # The client asks for base64 unless it is told otherwise.
    answer = await openai_client.embeddings.create(model="text-embedding-3-small", input=TEXTS)
    rows = np.array([one.embedding for one in answer.data])
    assert rows.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    plain = await openai_client.embeddings.create(model="plain", input=TEXTS, encoding_format="float")
    np.testing.assert_array_equal(np.array([one.embedding for one in plain.data]), rows)
    async with httpx.AsyncClient(base_url=encoder_gateway) as http:
        body = {"input": TEXTS, "encoding_format": "base64"}
        raw = (await http.post("/v1/embeddings", json=body)).json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(raw), "<f4"), rows[0].astype("<f4"))
    assert answer.usage.total_tokens > len(TEXTS)


async def test_what_a_text_is_used_for(openai_client: openai.AsyncOpenAI):
    """The model `classified` has prompts."""
    rows = {}
    for role in ("query", "document"):
        answer = await openai_client.embeddings.create(
            model="classified", input="the cat", extra_body={"input_type": role}
        )
        rows[role] = answer.data[0].embedding
    assert not np.allclose(rows["query"], rows["document"])


async def test_models_of_openai(openai_client: openai.AsyncOpenAI):
    listed = [one.id async for one in openai_client.models.list()]
    # The encoder names models of directories by their path.
    assert {Path(one).name for one in listed} == {"plain", "classified", "pairs"}
    for name in ("plain", *listed):
        assert (await openai_client.models.retrieve(name)).owned_by == "textmatch"


async def test_errors_of_openai_have_our_reasons(openai_client: openai.AsyncOpenAI):
    with pytest.raises(openai.BadRequestError, match="has lists of token ids") as refused:
        await openai_client.embeddings.create(model="plain", input=[[1, 2, 3]])
    assert (refused.value.code, refused.value.param) == ("INVALID_INPUT", "input")
    with pytest.raises(openai.NotFoundError) as missing:
        await openai_client.embeddings.create(model="gpt-9", input="a")
    assert missing.value.code == "MODEL_NOT_FOUND"


async def test_both_reranks_of_cohere(encoder_gateway: str):
    async with cohere.AsyncClientV2(base_url=encoder_gateway, api_key="none") as newer:
        answer = await newer.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS, top_n=2)
    scores = [one.relevance_score for one in answer.results]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    async with cohere.AsyncClient(base_url=encoder_gateway, api_key="none") as older:
        all_of_them = await older.rerank(
            query=QUERY, documents=[{"text": text} for text in TEXTS], return_documents=True
        )
    assert [one.index for one in all_of_them.results][:2] == [one.index for one in answer.results]
    assert {one.document.text for one in all_of_them.results if one.document} == set(TEXTS)


async def test_errors_of_cohere_have_our_items(encoder_gateway: str):
    async with cohere.AsyncClientV2(base_url=encoder_gateway, api_key="none") as client:
        with pytest.raises(cohere.BadRequestError) as refused:
            await client.rerank(model="rerank-v3.5", query=QUERY, documents=["a", " "])
    assert refused.value.body["items"][0]["field"] == "documents[1]"


async def test_the_examples_of_qdrant_store_search_and_rerank(encoder_gateway: str):
    """Its page on OpenAI (embed, upsert, search), and its page on rerankers, with Cohere."""

    def run() -> tuple[list[str], list[str]]:
        qdrant = QdrantClient(":memory:")
        with openai.Client(base_url=f"{encoder_gateway}/v1", api_key="none") as embedder:
            model = "text-embedding-3-small"
            result = embedder.embeddings.create(input=TEXTS, model=model)
            points = [
                PointStruct(id=number, vector=data.embedding, payload={"text": text})
                for number, (data, text) in enumerate(zip(result.data, TEXTS, strict=True))
            ]
            parameters = VectorParams(size=len(points[0].vector), distance=Distance.COSINE)
            qdrant.create_collection("example_collection", vectors_config=parameters)
            qdrant.upsert("example_collection", points)
            query = embedder.embeddings.create(input=[QUERY], model=model).data[0].embedding
        found = qdrant.query_points("example_collection", query=query, limit=3).points
        texts = [one.payload["text"] for one in found]
        with cohere.Client(base_url=encoder_gateway, api_key="none") as reranker:
            ranked = reranker.rerank(model="rerank-english-v3.0", query=QUERY, documents=texts, top_n=2)
        return texts, [texts[one.index] for one in ranked.results]

    found, ranked = await asyncio.to_thread(run)
    assert found[0] == QUERY
    assert sorted(found) == sorted(TEXTS)
    assert len(ranked) == 2


async def test_llama_index_embeds_and_reranks(encoder_gateway: str):
    """Its class for servers like OpenAI's, and its class for Jina."""
    async with httpx.AsyncClient() as http:
        embedding = OpenAILikeEmbedding(
            model_name="text-embedding-3-small",
            api_base=f"{encoder_gateway}/v1",
            api_key="none",
            max_retries=0,
            async_http_client=http,
        )
        rows = np.array(await embedding.aget_text_embedding_batch(TEXTS))
        query = await embedding.aget_query_embedding(TEXTS[0])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(query, rows[0], atol=1e-6)

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    reranker = JinaRerank(
        base_url=f"{encoder_gateway}/v1", api_key="none", model="rerank-v3.5", top_n=len(TEXTS)
    )
    ranked = await asyncio.to_thread(reranker.postprocess_nodes, nodes, query_str=QUERY)
    assert sorted(one.text for one in ranked) == sorted(TEXTS)
    async with cohere.AsyncClientV2(base_url=encoder_gateway, api_key="none") as client:
        expected = await client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS)
    assert [one.text for one in ranked] == [TEXTS[one.index] for one in expected.results]
    assert [one.score for one in ranked] == [one.relevance_score for one in expected.results]

    with pytest.raises(RuntimeError, match=r"documents\[0\]"):
        await asyncio.to_thread(
            reranker.postprocess_nodes, [NodeWithScore(node=TextNode(text=" "))], query_str=QUERY
        )
    # It never closes its connections itself.
    reranker._session.close()
