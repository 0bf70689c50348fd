"""Collections, and matching in them.

    curl localhost:8080/v1/collections/default:match -H 'content-type: application/json' \\
        -d '{"query": "how do I undo a commit", "top_k": 3, "where": "module = \\"git\\""}'
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from services.gateway.caller import FromRequest, StrictBody
from services.gateway.filters import FilterBody, to_where
from services.gateway.ndjson import NdjsonResponse, in_time, ndjson_content
from services.gateway.problems import ItemError, item_error
from textmatch.client import (
    BatchMatchResult,
    CollectionConfig,
    CollectionSummary,
    DegradedReason,
    DocumentState,
    Match,
    MatchKeywords,
    MatchResult,
    PayloadIndex,
    Recall,
    Rerank,
)
from textmatch.collection_config import DEFAULT_PASSAGE_TOKENS
from textmatch.errors import TextMatchError
from textmatch.types import MAX_EXCLUDED_IDS

MAX_QUERIES = 1_000

router = APIRouter(tags=["Collections"])


class PayloadIndexBody(StrictBody):
    """An attribute on which filters are fast."""

    field: str
    kind: Literal["keyword", "integer", "float", "bool", "datetime"]
    is_tenant: bool = False


class CreateCollectionBody(StrictBody):
    """Settings of a new collection."""

    bi_encoder: str = Field("", description="Name or id of a bi-encoder. Empty: the default one.")
    cross_encoder: str = Field("", description="Name or id of a cross-encoder. Empty: the default one.")
    lexical: bool = Field(True, description="Whether there is a BM25 index.")
    payload_indexes: list[PayloadIndexBody] = Field(default_factory=list)
    passage_tokens: int = Field(
        DEFAULT_PASSAGE_TOKENS,
        description="Longer texts are divided into passages of at most so many tokens, or as many as the "
        "model reads if that is less. 0: texts are not divided.",
    )
    passage_overlap: int = Field(
        0, description="Most tokens of a passage, its last sentences, that begin the next one."
    )


class CollectionBody(BaseModel):
    """A collection."""

    name: str
    bi_encoder: str
    cross_encoder: str
    lexical: bool
    payload_indexes: list[PayloadIndexBody]
    passage_tokens: int
    passage_overlap: int
    model_id: str = Field(description="The bi-encoder in use; empty before the first document.")
    document_count: int
    created_at: datetime | None


class CollectionListBody(BaseModel):
    """The collections that the API key may use, by name."""

    collections: list[CollectionBody]


class StatusProblem(BaseModel):
    """A store that fails, or the reason for which nothing can be indexed until an operator acts."""

    source: str = Field(description="qdrant, redis or worker")
    collection: str
    reason: str = Field(examples=["STORE_FULL"])
    message: str


class StatusBody(BaseModel):
    """The queue of a collection, and the state of one document if it was asked for."""

    document_count: int | None = Field(description="null while the index cannot be read")
    queued_count: int
    oldest_queued_seconds: float
    dead_letter_count: int
    collection: str
    model_id: str
    document_state: DocumentState | None = None
    document_error: str | None = None
    problems: list[StatusProblem] = Field(default_factory=list)
    truncated_count: int | None = Field(
        None,
        description="Documents of which the model has not read the end; null while the index cannot be read.",
    )


class MatchOptionsBody(StrictBody):
    """Options of a match. `where` and `filter` are two forms of the same."""

    top_k: int = Field(10, ge=1, le=1_000)
    candidate_count: int | None = Field(None, ge=1, le=1_000)
    where: str | None = Field(None, examples=['module = "os" and year > 2020'])
    filter: FilterBody | None = None
    min_score: float = Field(0.0, ge=0, le=1)
    recall: Annotated[Recall, Field(strict=False)] | None = None
    rerank: Annotated[Rerank, Field(strict=False)] = Rerank.AUTO
    rerank_depth: int = Field(0, ge=0, le=1_000)
    explain: bool = False
    omit_text: bool = False
    omit_attributes: bool = False
    exclude_ids: list[str] = Field(default_factory=list, max_length=MAX_EXCLUDED_IDS)
    require_complete: bool = Field(False, description="503 instead of a degraded answer.")
    group_by: str = Field("", description="Path of an attribute: only the best match of each value.")

    def to_keywords(self) -> MatchKeywords:
        """The options for the client."""
        keywords = MatchKeywords(
            top_k=self.top_k,
            where=to_where(self.where, self.filter),
            min_score=self.min_score,
            recall=self.recall,
            rerank=self.rerank,
            rerank_depth=self.rerank_depth,
            explain=self.explain,
            omit_text=self.omit_text,
            omit_attributes=self.omit_attributes,
            exclude_ids=self.exclude_ids,
            require_complete=self.require_complete,
            group_by=self.group_by,
        )
        if self.candidate_count is not None:
            keywords["candidate_count"] = self.candidate_count
        return keywords


class MatchRequestBody(MatchOptionsBody):
    """A query or the id of a stored document, with its options."""

    query: str = ""
    document_id: str = Field("", description="Instead of `query`: what is similar to this document.")


class BatchMatchRequestBody(MatchOptionsBody):
    """Queries with the options of all."""

    queries: list[str] = Field(min_length=1, max_length=MAX_QUERIES)


class PassageBody(BaseModel):
    """The best passage of a document that has several: its characters from `start` up to `end`, from 0."""

    text: str
    start: int
    end: int
    number: int
    score: float


class QueryPassageBody(BaseModel):
    """A passage of a query that is longer than the model reads: its characters from `start` up to `end`."""

    number: int
    start: int
    end: int


class MatchBody(BaseModel):
    """A stored document that means about the same as the query. Scores are 0..1."""

    id: str
    score: float
    recall_score: float
    rerank_score: float | None
    text: str = Field(description="Of a document with several passages, that of the best one.")
    attributes: dict[str, Any]
    version: int
    passage: PassageBody | None = Field(None, description="null if the document has one passage.")
    query_passage: QueryPassageBody | None = Field(
        None, description="What fits the document best of a query that was divided; null if it was not."
    )
    explanation: dict[str, Any] | None = Field(
        None, description="The parts of the score; with `explain` only."
    )


class TimingsBody(BaseModel):
    """Milliseconds in the matcher."""

    encode: float
    recall: float
    rerank: float
    total: float


class ModelsBody(BaseModel):
    """Ids of the models that were used."""

    bi_encoder: str
    cross_encoder: str | None


class MatchResultBody(BaseModel):
    """The best matches, highest score first."""

    query: str = Field(description="Or the id of the document that was given instead.")
    matches: list[MatchBody]
    degraded: DegradedReason | None = Field(description="Which part is missing that could have changed it.")
    candidate_count: int
    scored_count: int
    recall: Recall | None
    timings_ms: TimingsBody
    models: ModelsBody
    query_passage_count: int = Field(
        1,
        description="Above 1: so many passages of a query that is longer than the model reads were matched.",
    )
    filter_warnings: list[str] = Field(
        default_factory=list, description="What is suspicious about the filter, if nothing matched."
    )


class BatchMatchLine(BaseModel):
    """The answer to one query: `result` or `error`."""

    query_index: int
    result: MatchResultBody | None = None
    error: ItemError | None = None


@router.get("/v1/collections")
async def list_collections(caller: FromRequest) -> CollectionListBody:
    """All collections that the API key may use."""
    found = await caller.client.list_collections(timeout_seconds=caller.timeout_seconds)
    return CollectionListBody(collections=[_collection_body(one) for one in found])


@router.put("/v1/collections/{collection}")
async def create_collection(
    collection: str, body: CreateCollectionBody, caller: FromRequest
) -> CollectionBody:
    """Make a collection. Making one again with the same settings changes nothing."""
    settings = CollectionConfig(
        name=collection,
        bi_encoder=body.bi_encoder,
        cross_encoder=body.cross_encoder,
        lexical=body.lexical,
        payload_indexes=tuple(
            PayloadIndex(one.field, one.kind, one.is_tenant) for one in body.payload_indexes
        ),
        passage_tokens=body.passage_tokens,
        passage_overlap=body.passage_overlap,
    )
    made = await caller.client.create_collection(settings, timeout_seconds=caller.timeout_seconds)
    return _collection_body(made)


@router.get("/v1/collections/{collection}")
async def get_collection(collection: str, caller: FromRequest) -> CollectionBody:
    """A collection with its size."""
    return _collection_body(
        await caller.client.get_collection(collection, timeout_seconds=caller.timeout_seconds)
    )


@router.delete("/v1/collections/{collection}", status_code=204)
async def delete_collection(collection: str, caller: FromRequest) -> None:
    """Delete a collection with all its documents."""
    await caller.client.delete_collection(collection, timeout_seconds=caller.timeout_seconds)


@router.get("/v1/collections/{collection}/status")
async def status(
    collection: str,
    caller: FromRequest,
    document_id: Annotated[str, Query(description="Also return the state of this document.")] = "",
) -> StatusBody:
    """The size and age of the queue."""
    found = await caller.collection(collection).ingest_status(
        document_id, timeout_seconds=caller.timeout_seconds
    )
    return StatusBody(**asdict(found))


@router.post("/v1/collections/{collection}:match", response_model=MatchResultBody)
async def match(collection: str, body: MatchRequestBody, caller: FromRequest) -> Response:
    """The stored documents that mean about the same as the query."""
    client = caller.collection(collection)
    result = await client.match(
        body.query,
        document_id=body.document_id,
        timeout_seconds=caller.timeout_seconds,
        **body.to_keywords(),
    )
    return Response(
        _result_body(result).model_dump_json(exclude_defaults=True), media_type="application/json"
    )


@router.post(
    "/v1/collections/{collection}:batchMatch",
    response_class=NdjsonResponse,
    responses={
        200: {"description": "One line for each query, in order.", "content": ndjson_content(BatchMatchLine)}
    },
)
async def batch_match(collection: str, body: BatchMatchRequestBody, caller: FromRequest) -> Response:
    """Match many queries with bulk priority. Each line is sent when those before it are ready."""
    results = caller.collection(collection).batch_match(
        body.queries, timeout_seconds=caller.timeout_seconds, **body.to_keywords()
    )
    return await NdjsonResponse.started(_lines(results, len(body.queries), caller.timeout_seconds))


async def _lines(
    results: AsyncIterator[BatchMatchResult], count: int, timeout_seconds: float | None
) -> AsyncIterator[BatchMatchLine]:
    """One line for each query. After an error or at the end of the time, the rest have that error.

    Raises:
        TextMatchError: no query was answered.
    """
    answered_count = 0
    async for one in in_time(results, timeout_seconds):
        if isinstance(one, TextMatchError):
            for left in range(answered_count, count):
                yield BatchMatchLine(query_index=left, error=item_error(one))
            return
        answered_count += 1
        yield BatchMatchLine(
            query_index=one.query_index,
            result=_result_body(one.result) if one.result is not None else None,
            error=item_error(one.error) if one.error else None,
        )


def _collection_body(summary: CollectionSummary) -> CollectionBody:
    config = summary.config
    return CollectionBody(
        name=config.name,
        bi_encoder=config.bi_encoder,
        cross_encoder=config.cross_encoder,
        lexical=config.lexical,
        payload_indexes=[PayloadIndexBody(**asdict(one)) for one in config.payload_indexes],
        passage_tokens=config.passage_tokens,
        passage_overlap=config.passage_overlap,
        model_id=summary.model_id,
        document_count=summary.document_count,
        created_at=datetime.fromtimestamp(config.created_at, UTC) if config.created_at else None,
    )


def _result_body(result: MatchResult) -> MatchResultBody:
    timings = result.timings
    return MatchResultBody(
        query=result.query,
        matches=[_match_body(one) for one in result],
        degraded=result.degraded,
        candidate_count=result.candidate_count,
        scored_count=result.scored_count,
        recall=result.recall,
        timings_ms=TimingsBody(
            encode=timings.encode_ms,
            recall=timings.recall_ms,
            rerank=timings.rerank_ms,
            total=timings.total_ms,
        ),
        models=ModelsBody(bi_encoder=result.bi_encoder_model_id, cross_encoder=result.cross_encoder_model_id),
        filter_warnings=list(result.filter_warnings),
        query_passage_count=result.query_passage_count,
    )


def _match_body(match: Match) -> MatchBody:
    document = match.document
    return MatchBody(
        id=document.id,
        score=match.score,
        recall_score=match.recall_score,
        rerank_score=match.rerank_score,
        text=document.text,
        attributes=dict(document.attributes),
        version=document.version,
        passage=PassageBody(**asdict(match.passage)) if document.passage else None,
        query_passage=QueryPassageBody(**asdict(match.query_passage)) if match.query_passage else None,
        explanation=asdict(match.explanation) if match.explanation else None,
    )
