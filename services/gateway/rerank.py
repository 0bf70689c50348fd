"""Scores of pairs, as Cohere, Jina, text-embeddings-inference and vLLM have them.

    curl localhost:8080/v1/rerank -H 'content-type: application/json' \\
        -d '{"query": "delete a folder", "documents": ["rm -r", "mkdir"], "top_n": 1}'
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.gateway.caller import Caller, FromRequest, StrictBody
from services.gateway.embeddings import MAX_TEXTS, TeiDirection, TeiTruncate, Texts, to_truncation
from services.gateway.problems import renamed_fields
from textmatch.client import ScoreResult
from textmatch.documents import check_item_count
from textmatch.errors import InvalidInput
from textmatch.runtime import logs

router = APIRouter()


class RerankDocument(BaseModel):
    """A document with further members, which come back unchanged."""

    model_config = ConfigDict(extra="allow", strict=True)

    text: str


def _from_text(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


class RerankRequest(StrictBody):
    """As Cohere's and Jina's."""

    query: str
    documents: list[
        Annotated[RerankDocument, BeforeValidator(_from_text, json_schema_input_type=str | RerankDocument)]
    ] = Field(min_length=1, max_length=MAX_TEXTS)
    model: str = Field("", description="Name, id or alias of a cross-encoder. Empty: the default one.")
    top_n: int | None = Field(None, ge=1, description="Return only the best ones.")
    return_documents: bool = False


class RankedDocument(BaseModel):
    """One document; `index` is its place in the request."""

    index: int
    relevance_score: float = Field(description="0..1")
    document: RerankDocument | None = None


class RerankMeta(BaseModel):
    """Remarks."""

    api_version: dict[str, str]
    warnings: list[str] | None = None


class RerankResponse(BaseModel):
    """Documents, the best first."""

    id: str
    model: str
    results: list[RankedDocument]
    meta: RerankMeta


class TeiRerankRequest(StrictBody):
    """As `/rerank` of text-embeddings-inference."""

    query: str
    texts: list[str] = Field(min_length=1, max_length=MAX_TEXTS)
    raw_scores: bool = False
    return_text: bool = False
    truncate: TeiTruncate = True
    truncation_direction: TeiDirection = "right"


class TeiRank(BaseModel):
    """One text; `index` is its place in the request."""

    index: int
    score: float
    text: str | None = None


class ScoreRequestBody(StrictBody):
    """As vLLM's: one text with one or several others, or as many with as many."""

    text_1: Texts
    text_2: Texts
    model: str = Field("", description="Name, id or alias of a cross-encoder. Empty: the default one.")


class ScoreItem(BaseModel):
    """The score of a pair."""

    index: int
    object: Literal["score"] = "score"
    score: float = Field(description="0..1")


class ScoreResponseBody(BaseModel):
    """Scores in the order of the pairs."""

    id: str
    object: Literal["list"] = "list"
    model: str
    data: list[ScoreItem]


@router.post("/v1/rerank", response_model_exclude_none=True, tags=["Cohere and Jina"])
async def rerank_v1(body: RerankRequest, caller: FromRequest) -> RerankResponse:
    """Sort documents by how well they answer a query."""
    return await _rerank(body, caller, "1")


@router.post("/v2/rerank", response_model_exclude_none=True, tags=["Cohere and Jina"])
async def rerank_v2(body: RerankRequest, caller: FromRequest) -> RerankResponse:
    """The same for newer clients."""
    return await _rerank(body, caller, "2")


@router.post("/rerank", response_model_exclude_none=True, tags=["text-embeddings-inference"])
async def rerank(body: TeiRerankRequest, caller: FromRequest) -> list[TeiRank]:
    """Sort texts by the default cross-encoder."""
    result = await caller.client.score(
        body.query,
        body.texts,
        truncate=to_truncation(truncate=body.truncate, direction=body.truncation_direction),
        timeout_seconds=caller.timeout_seconds,
    )
    scores = result.raw_scores if body.raw_scores else result.scores
    return [
        TeiRank(index=index, score=float(scores[index]), text=body.texts[index] if body.return_text else None)
        for index in best_first(result)
    ]


@router.post("/v1/score", tags=["vLLM"])
async def score(body: ScoreRequestBody, caller: FromRequest) -> ScoreResponseBody:
    """Score pairs of texts."""
    options: dict[str, Any] = {
        "model": caller.gateway.model(body.model),
        "timeout_seconds": caller.timeout_seconds,
    }
    check_item_count("text_1", len(body.text_1), MAX_TEXTS)
    check_item_count("text_2", len(body.text_2), MAX_TEXTS)
    if len(body.text_1) == 1:
        with renamed_fields({"query": "text_1[0]", "texts": "text_2"}):
            result = await caller.client.score(body.text_1[0], body.text_2, **options)
    elif len(body.text_1) == len(body.text_2):
        result = await caller.client.score_pairs(zip(body.text_1, body.text_2, strict=True), **options)
    else:
        raise InvalidInput.of_field("text_1", f"has {len(body.text_1)} texts; text_2 has {len(body.text_2)}")
    return ScoreResponseBody(
        id=logs.request_id.get(),
        model=result.model_id,
        data=[ScoreItem(index=index, score=float(one)) for index, one in enumerate(result.scores)],
    )


def best_first(result: ScoreResult) -> list[int]:
    """Positions by descending score; equal ones in their order."""
    order: list[int] = np.argsort(-result.scores, kind="stable").tolist()
    return order


async def _rerank(body: RerankRequest, caller: Caller, api_version: str) -> RerankResponse:
    with renamed_fields({"texts": "documents"}):
        result = await caller.client.score(
            body.query,
            [document.text for document in body.documents],
            model=caller.gateway.model(body.model),
            timeout_seconds=caller.timeout_seconds,
        )
    warnings = [
        f"documents[{index}] is longer than the model reads"
        for index, truncated in enumerate(result.truncated)
        if truncated
    ]
    return RerankResponse(
        id=logs.request_id.get(),
        model=result.model_id,
        results=[
            RankedDocument(
                index=index,
                relevance_score=float(result.scores[index]),
                document=body.documents[index] if body.return_documents else None,
            )
            for index in best_first(result)[: body.top_n]
        ],
        meta=RerankMeta(api_version={"version": api_version}, warnings=warnings or None),
    )
