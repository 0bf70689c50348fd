"""Documents: streams of JSON lines into a collection, and single ones.

    curl -T documents.jsonl -X POST -H 'content-type: application/x-ndjson' \\
        localhost:8080/v1/collections/default/documents

answers one line for each line: `{"line": 1, "id": "rm", "outcome": "ACCEPTED", "version": 1764495000000000}`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from services.gateway.boundary import without_body_limit
from services.gateway.caller import FromRequest, StrictBody
from services.gateway.filters import FilterBody, to_where
from services.gateway.ndjson import (
    NDJSON,
    InputLine,
    LineStream,
    NdjsonResponse,
    check_media_type,
    ndjson_content,
)
from services.gateway.problems import ItemError, item_error, renamed_fields
from textmatch.client import AsyncTextMatchClient, Document, DocumentResult, DocumentState
from textmatch.documents import MAX_VERSION, check_item_count
from textmatch.errors import DeadlinePassed, InvalidInput, TextMatchError

MAX_IDS = 10_000
# Their documents are in memory at the same time.
MAX_READ_IDS = 1_000

router = APIRouter(tags=["Documents"])


class LineOutcome(StrEnum):
    """What became of a line."""

    ACCEPTED = "ACCEPTED"  # durable in the queue, searchable soon
    UNCHANGED = "UNCHANGED"  # already stored with the same content
    REJECTED = "REJECTED"  # not stored; `error` says why
    FAILED = "FAILED"  # not answered, and perhaps stored: send it again


class DocumentLine(BaseModel):
    """The result of one line."""

    line: int = Field(description="From 1.")
    id: str
    outcome: LineOutcome
    version: int | None = None
    error: ItemError | None = None


class NewDocument(StrictBody):
    """A document without its id, which is in the path."""

    text: str
    attributes: dict[str, Any] = Field(default_factory=dict)
    version: int | None = Field(
        None, ge=1, le=MAX_VERSION, description="The highest version wins. Without one, the last write."
    )

    expected_version: int | None = Field(
        None,
        ge=0,
        le=MAX_VERSION,
        description="Store it only if the document has this version; 0: only if there is none.",
    )


class DocumentBody(BaseModel):
    """A stored document."""

    id: str
    text: str
    attributes: dict[str, Any]
    version: int


class DocumentIdsBody(StrictBody):
    """Which documents."""

    ids: list[str]


class FoundDocumentsBody(BaseModel):
    """Stored documents in the order of the ids, and the ids of those that are not stored."""

    documents: list[DocumentBody]
    missing_ids: list[str]


class DocumentStatusBody(BaseModel):
    """What became of a document."""

    id: str
    state: DocumentState | None = Field(description="null: it is not known while Qdrant does not answer.")
    version: int = Field(description="That is stored, queued, deleted or failed; 0: none is known.")
    error: str = Field(description="Of a FAILED document.")


class CountBody(StrictBody):
    """A filter in one of its two forms; without one, all documents."""

    where: str | None = None
    filter: FilterBody | None = None


class CountedBody(BaseModel):
    """How many stored documents match."""

    document_count: int


class DocumentResultBody(BaseModel):
    """What became of a document."""

    id: str
    outcome: LineOutcome
    version: int | None


class DeleteBody(StrictBody):
    """Which documents: `ids`, or a filter in one of its two forms."""

    ids: list[str] | None = None
    where: str | None = None
    filter: FilterBody | None = None
    version: int | None = Field(None, description="Keep documents that are newer. Absent: now.")
    dry_run: bool = Field(False, description="Delete nothing, only count.")


class DeletedBody(BaseModel):
    """How many stored documents were removed, or would be."""

    deleted_count: int


_LINES_IN = {
    "requestBody": {
        "required": True,
        "description": "One document a line, in a body of any size: `id`, `text`, `attributes`, `version`. "
        "A line with `id` and `deleted: true` deletes. Both may have `expected_version`.",
        "content": {NDJSON: {"schema": {"type": "string"}}},
    }
}
_LINES_OUT = {
    "description": "One line for each document, as soon as it is answered; not in the order of the input.",
    "content": ndjson_content(DocumentLine),
}


@router.post(
    "/v1/collections/{collection}/documents",
    response_class=NdjsonResponse,
    responses={200: _LINES_OUT},
    openapi_extra=_LINES_IN,
)
async def ingest(collection: str, request: Request, caller: FromRequest) -> Response:
    """Store documents. They are sent on in batches of up to 200."""
    check_media_type(request)
    without_body_limit(request.scope)
    client = caller.collection(collection)
    run = DocumentUpload(client, LineStream(request.stream()), caller.timeout_seconds)
    return await NdjsonResponse.started(run.results())


@router.get(
    "/v1/collections/{collection}/documents",
    response_class=NdjsonResponse,
    responses={
        200: {
            "description": "One line for each document, in an order that never changes.",
            "content": ndjson_content(DocumentBody),
        }
    },
)
async def list_documents(
    collection: str,
    caller: FromRequest,
    where: Annotated[str | None, Query(description="A filter; all documents without one.")] = None,
    after: Annotated[str, Query(description="Id of a document: only those after it.")] = "",
    limit: Annotated[int | None, Query(ge=1, description="At most so many.")] = None,
    omit_text: bool = False,
    omit_attributes: bool = False,
) -> Response:
    """Stored documents. What it answers can be uploaded again, with the versions."""
    documents = caller.collection(collection).list_documents(
        where,
        after=after,
        limit=limit,
        omit_text=omit_text,
        omit_attributes=omit_attributes,
        timeout_seconds=caller.timeout_seconds,
    )
    return await NdjsonResponse.started(_document_bodies(documents))


@router.post("/v1/collections/{collection}/documents:get")
async def get_documents(collection: str, body: DocumentIdsBody, caller: FromRequest) -> FoundDocumentsBody:
    """Many stored documents by their ids."""
    check_item_count("ids", len(body.ids), MAX_READ_IDS)
    found = await caller.collection(collection).get_documents(
        body.ids, timeout_seconds=caller.timeout_seconds
    )
    return FoundDocumentsBody(
        documents=[_document_body(one) for one in found.documents], missing_ids=list(found.missing_ids)
    )


@router.post("/v1/collections/{collection}/documents:status")
async def document_states(
    collection: str, body: DocumentIdsBody, caller: FromRequest
) -> list[DocumentStatusBody]:
    """What became of documents, in the order of the ids."""
    check_item_count("ids", len(body.ids), MAX_IDS)
    states = await caller.collection(collection).document_states(
        body.ids, timeout_seconds=caller.timeout_seconds
    )
    return [DocumentStatusBody(**asdict(one)) for one in states]


@router.post("/v1/collections/{collection}/documents:count")
async def count_documents(collection: str, body: CountBody, caller: FromRequest) -> CountedBody:
    """Count stored documents."""
    count = await caller.collection(collection).count_documents(
        to_where(body.where, body.filter), timeout_seconds=caller.timeout_seconds
    )
    return CountedBody(document_count=count)


@router.get("/v1/collections/{collection}/documents/{document_id:path}")
async def get_document(collection: str, document_id: str, caller: FromRequest) -> DocumentBody:
    """A stored document. 404 while it is only queued."""
    client = caller.collection(collection)
    found = await client.get_document(document_id, timeout_seconds=caller.timeout_seconds)
    return _document_body(found)


@router.put("/v1/collections/{collection}/documents/{document_id:path}")
async def put_document(
    collection: str, document_id: str, body: NewDocument, caller: FromRequest
) -> DocumentResultBody:
    """Store one document."""
    document = {"id": document_id, **body.model_dump(exclude_none=True)}
    results = caller.collection(collection).ingest([document], timeout_seconds=caller.timeout_seconds)
    with renamed_fields({"id": "document_id", "documents[0]": "body"}):
        try:
            async with asyncio.timeout(caller.timeout_seconds):
                [result] = [one async for one in results]
        except TimeoutError:
            raise DeadlinePassed("the time limit passed; the document may be stored") from None
        if result.error is not None:
            raise result.error
    return DocumentResultBody(
        id=result.id, outcome=LineOutcome(result.outcome), version=result.version or None
    )


@router.delete("/v1/collections/{collection}/documents/{document_id:path}")
async def delete_document(collection: str, document_id: str, caller: FromRequest) -> DeletedBody:
    """Delete one document. Deleting one that is not stored succeeds."""
    client = caller.collection(collection)
    with renamed_fields({"ids[0]": "document_id"}):
        count = await client.delete([document_id], timeout_seconds=caller.timeout_seconds)
    return DeletedBody(deleted_count=count)


@router.post("/v1/collections/{collection}/documents:delete")
async def delete_documents(collection: str, body: DeleteBody, caller: FromRequest) -> DeletedBody:
    """Delete documents by their ids, or by a filter, which needs the scope admin."""
    client, where = caller.collection(collection), to_where(body.where, body.filter)
    options: dict[str, Any] = {
        "version": body.version,
        "dry_run": body.dry_run,
        "timeout_seconds": caller.timeout_seconds,
    }
    if (body.ids is None) == (where is None):
        raise InvalidInput.of_field("ids", "give either ids or a filter")
    if where is not None:
        return DeletedBody(deleted_count=await client.delete_where(where, **options))
    check_item_count("ids", len(body.ids or ()), MAX_IDS)
    return DeletedBody(deleted_count=await client.delete(body.ids or (), **options))


def _document_body(document: Document) -> DocumentBody:
    return DocumentBody(
        id=document.id,
        text=document.text,
        attributes=dict(document.attributes),
        version=document.version,
    )


async def _document_bodies(documents: AsyncIterator[Document]) -> AsyncIterator[DocumentBody]:
    async for one in documents:
        yield _document_body(one)


class DocumentUpload:
    """One upload. Each line gets a result, also if servers fail in the middle.

    Args:
        timeout_seconds: of each batch; None: the client's.
    """

    def __init__(
        self, client: AsyncTextMatchClient, lines: LineStream, timeout_seconds: float | None
    ) -> None:
        self._client = client
        self._lines = lines
        self._timeout_seconds = timeout_seconds
        # Lines that were not answered, by the position of their document.
        self._waiting: dict[int, DocumentLine] = {}
        self._unreadable: deque[DocumentLine] = deque()
        self._sent_count = 0

    async def results(self) -> AsyncIterator[DocumentLine]:
        """The results, as soon as they are known.

        Raises:
            TextMatchError: no line was answered.
        """
        is_answered = False
        try:
            async for result in self._client.ingest(self._documents(), timeout_seconds=self._timeout_seconds):
                is_answered = True
                for line in self._take_unreadable():
                    yield line
                yield self._answered(result)
        except TextMatchError as error:
            if not is_answered:
                raise
            failure = item_error(error)
            async for line in self._failed(failure):
                yield line
        for line in self._take_unreadable():
            yield line

    async def _documents(self) -> AsyncIterator[Any]:
        async for line in self._lines:
            if line.problem:
                self._unreadable.append(_rejected(line))
                continue
            self._waiting[self._sent_count] = _failed(line)
            self._sent_count += 1
            yield line.value

    def _answered(self, result: DocumentResult) -> DocumentLine:
        line = self._waiting.pop(result.position)
        return DocumentLine(
            line=line.line,
            id=result.id,
            outcome=LineOutcome(result.outcome),
            version=result.version or None,
            error=item_error(result.error) if result.error else None,
        )

    async def _failed(self, failure: ItemError) -> AsyncIterator[DocumentLine]:
        """What was sent without an answer, and the rest of the input, which is not sent."""
        for waiting in self._waiting.values():
            yield waiting.model_copy(update={"error": failure})
        async for line in self._lines:
            yield _rejected(line) if line.problem else _failed(line).model_copy(update={"error": failure})

    def _take_unreadable(self) -> list[DocumentLine]:
        taken = list(self._unreadable)
        self._unreadable.clear()
        return taken


def _failed(line: InputLine) -> DocumentLine:
    document_id = line.value.get("id") if isinstance(line.value, dict) else None
    return DocumentLine(
        line=line.number,
        id=document_id if isinstance(document_id, str) else "",
        outcome=LineOutcome.FAILED,
    )


def _rejected(line: InputLine) -> DocumentLine:
    error = InvalidInput.of_field(f"line {line.number}", line.problem)
    return DocumentLine(line=line.number, id="", outcome=LineOutcome.REJECTED, error=item_error(error))
