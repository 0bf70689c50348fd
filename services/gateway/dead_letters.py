"""Dead letters: documents that could not be indexed, to be sent again or dropped.

    curl localhost:8080/v1/collections/default/deadLetters

answers a line for each: `{"id": "rm", "reason": "TEXT_FAILED", "error": "…", "failed_at": "…", "text": "…"}`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from services.gateway.caller import FromRequest, StrictBody
from services.gateway.ndjson import NdjsonResponse, ndjson_content
from textmatch.client import LetterInfo
from textmatch.documents import check_item_count

MAX_IDS = 10_000

router = APIRouter(tags=["Dead letters"])

Unreadable = Annotated[
    bool,
    Query(description="The messages of the installation that could not be read. Needs the scope admin."),
]


class DeadLetterLine(BaseModel):
    """A document that could not be indexed, or a message that could not be read."""

    id: str
    reason: str = Field(examples=["TEXT_FAILED"])
    error: str
    failed_at: datetime
    text: str | None = Field(None, description="Of a document.")
    version: int | None = Field(None, description="Of a document.")
    raw: str | None = Field(None, description="The message that could not be read.")


class LettersBody(StrictBody):
    """Which dead letters."""

    ids: list[str]
    unreadable: bool = Field(False, description="They are messages that could not be read.")


class ReplayedBody(BaseModel):
    """How many of the dead letters there were; they are queued again."""

    replayed_count: int


class DroppedBody(BaseModel):
    """How many of the dead letters there were; they are gone."""

    dropped_count: int


@router.get(
    "/v1/collections/{collection}/deadLetters",
    response_class=NdjsonResponse,
    responses={
        200: {
            "description": "One line for each, the oldest failure first.",
            "content": ndjson_content(DeadLetterLine),
        }
    },
)
async def list_dead_letters(
    collection: str,
    caller: FromRequest,
    limit: Annotated[int | None, Query(ge=1, description="At most so many.")] = None,
    unreadable: Unreadable = False,
) -> Response:
    """Documents that could not be indexed, with the reason."""
    letters = caller.collection(collection).list_dead_letters(
        limit=limit, unreadable=unreadable, timeout_seconds=caller.timeout_seconds
    )
    return await NdjsonResponse.started(_lines(letters))


@router.post("/v1/collections/{collection}/deadLetters:replay")
async def replay_dead_letters(collection: str, body: LettersBody, caller: FromRequest) -> ReplayedBody:
    """Queue dead letters again, after the cause is fixed."""
    check_item_count("ids", len(body.ids), MAX_IDS)
    count = await caller.collection(collection).replay_dead_letters(
        body.ids, unreadable=body.unreadable, timeout_seconds=caller.timeout_seconds
    )
    return ReplayedBody(replayed_count=count)


@router.post("/v1/collections/{collection}/deadLetters:drop")
async def drop_dead_letters(collection: str, body: LettersBody, caller: FromRequest) -> DroppedBody:
    """Delete dead letters for good."""
    check_item_count("ids", len(body.ids), MAX_IDS)
    count = await caller.collection(collection).drop_dead_letters(
        body.ids, unreadable=body.unreadable, timeout_seconds=caller.timeout_seconds
    )
    return DroppedBody(dropped_count=count)


async def _lines(letters: AsyncIterator[LetterInfo]) -> AsyncIterator[DeadLetterLine]:
    async for letter in letters:
        yield DeadLetterLine(
            id=letter.id,
            reason=letter.reason,
            error=letter.error,
            failed_at=datetime.fromtimestamp(letter.failed_at, UTC),
            text=letter.text,
            version=letter.version or None,
            raw=letter.raw,
        )
