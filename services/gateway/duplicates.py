"""Pairs of documents that mean the same, as a stream of JSON lines.

    curl -N localhost:8080/v1/collections/default:findDuplicates -H 'content-type: application/json' \\
        -d '{"min_score": 0.8}'

A line has the pairs of some documents, and the token that a later request goes on with.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from services.gateway.caller import FromRequest, StrictBody
from services.gateway.filters import FilterBody, to_where
from services.gateway.ndjson import NdjsonResponse, in_time, ndjson_content
from services.gateway.problems import ItemError, item_error
from textmatch.client import DuplicatePage, DuplicatePair
from textmatch.errors import TextMatchError
from textmatch.types import MAX_NEIGHBORS, DuplicateOptions

router = APIRouter(tags=["Collections"])


class FindDuplicatesBody(StrictBody):
    """Options of the search. `where` and `filter` are two forms of the same."""

    against: str = Field("", description="Compare with the documents of this collection instead.")
    min_score: float = Field(DuplicateOptions.min_score, gt=0, le=1)
    neighbors: int = Field(
        DuplicateOptions.neighbors,
        ge=1,
        le=MAX_NEIGHBORS,
        description="Nearest others that a document is compared with.",
    )
    where: str | None = None
    filter: FilterBody | None = None
    rerank: bool = Field(True, description="Whether the cross-encoder scores the pairs.")
    omit_text: bool = False
    resume_token: str = Field("", description="Of a line of an earlier answer: go on after it.")


class DuplicateDocument(BaseModel):
    """A document of a pair."""

    id: str
    text: str
    version: int


class DuplicatePairBody(BaseModel):
    """Two documents that mean about the same. Scores are 0..1."""

    first: DuplicateDocument
    second: DuplicateDocument
    score: float
    recall_score: float
    rerank_score: float | None


class DuplicatesLine(BaseModel):
    """The pairs of some documents; or, as the last line, the error that ended the search."""

    pairs: list[DuplicatePairBody]
    resume_token: str
    compared_count: int
    is_last: bool
    error: ItemError | None = None


@router.post(
    "/v1/collections/{collection}:findDuplicates",
    response_class=NdjsonResponse,
    responses={
        200: {
            "description": "Lines of pairs, each pair once. An error after the first line is the last line.",
            "content": ndjson_content(DuplicatesLine),
        }
    },
)
async def find_duplicates(collection: str, body: FindDuplicatesBody, caller: FromRequest) -> Response:
    """Pairs of stored documents that mean the same."""
    pages = caller.collection(collection).find_duplicates(
        against=body.against,
        min_score=body.min_score,
        neighbors=body.neighbors,
        where=to_where(body.where, body.filter),
        rerank=body.rerank,
        omit_text=body.omit_text,
        resume_token=body.resume_token,
        timeout_seconds=caller.timeout_seconds,
    )
    return await NdjsonResponse.started(_lines(pages, body.resume_token, caller.timeout_seconds))


async def _lines(
    pages: AsyncIterator[DuplicatePage], resume_token: str, timeout_seconds: float | None
) -> AsyncIterator[DuplicatesLine]:
    async for page in in_time(pages, timeout_seconds):
        if isinstance(page, TextMatchError):
            yield DuplicatesLine(
                pairs=[],
                resume_token=resume_token,
                compared_count=0,
                is_last=False,
                error=item_error(page),
            )
            return
        resume_token = page.resume_token
        yield DuplicatesLine(
            pairs=[_pair_body(one) for one in page],
            resume_token=page.resume_token,
            compared_count=page.compared_count,
            is_last=page.is_last,
        )


def _pair_body(pair: DuplicatePair) -> DuplicatePairBody:
    first, second = (
        DuplicateDocument(id=one.id, text=one.text, version=one.version) for one in (pair.first, pair.second)
    )
    return DuplicatePairBody(
        first=first,
        second=second,
        score=pair.score,
        recall_score=pair.recall_score,
        rerank_score=pair.rerank_score,
    )
