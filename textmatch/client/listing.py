"""Lists that come in pages, and calls with any number of ids.

Documents and dead letters are read page by page, as far as the caller iterates.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from textmatch.client.connection import (
    DROP_DEAD_LETTERS,
    GET_DOCUMENTS,
    GET_INGEST_STATUS,
    LIST_DEAD_LETTERS,
    LIST_DOCUMENTS,
    REPLAY_DEAD_LETTERS,
    Connection,
    Method,
    chunks,
    utf8_bytes,
)
from textmatch.documents import Document
from textmatch.types import DocumentStatus, FoundDocuments, LetterInfo
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import from_proto, ingest_status_from_proto
from textmatch.wire.listing import MAX_PAGE_SIZE, found_documents, letter_from_proto

ListRequest = TypeVar("ListRequest", pb.ListDocumentsRequest, pb.ListDeadLettersRequest)
ListResponse = TypeVar("ListResponse", pb.ListDocumentsResponse, pb.ListDeadLettersResponse)

IDS_PER_CALL = 1_000


async def listed_documents(
    matcher: Connection, request: pb.ListDocumentsRequest, limit: int | None, timeout_seconds: float
) -> AsyncGenerator[Document, None]:
    """The documents of all pages.

    Args:
        request: for the first page.
        limit: at most so many documents; None: all.
        timeout_seconds: of one page.
    """
    messages = _messages(
        matcher, LIST_DOCUMENTS, request, limit, timeout_seconds, items=lambda page: page.documents
    )
    async for message in messages:
        yield from_proto(message)


async def documents_by_id(
    matcher: Connection, ids: Sequence[str], collection: str, timeout_seconds: float
) -> FoundDocuments:
    """Those of the documents that are stored, in order. A call answers as many ids as fit into its answer."""
    responses: list[pb.GetDocumentsResponse] = []
    for _, chunk in chunks(ids, utf8_bytes, IDS_PER_CALL):
        left = chunk
        while left:
            request = pb.GetDocumentsRequest(ids=left, collection=collection)
            responses.append(await matcher.call(GET_DOCUMENTS, request, timeout_seconds))
            # A server that answers none would be asked for ever.
            left = left[max(1, responses[-1].answered_count) :]
    return found_documents(responses)


async def states_by_id(
    matcher: Connection, ids: Sequence[str], collection: str, timeout_seconds: float
) -> tuple[DocumentStatus, ...]:
    """The states of documents, in order."""
    states: list[DocumentStatus] = []
    for _, chunk in chunks(ids, utf8_bytes, IDS_PER_CALL):
        request = pb.GetIngestStatusRequest(document_ids=chunk, collection=collection)
        response = await matcher.call(GET_INGEST_STATUS, request, timeout_seconds)
        states += ingest_status_from_proto(response).documents
    return tuple(states)


@dataclass(frozen=True)
class LetterCalls:
    """The dead letters of a collection, or the unreadable messages.

    Args:
        timeout_seconds: of each call.
    """

    matcher: Connection
    collection: str
    unreadable: bool
    timeout_seconds: float

    async def listed(self, limit: int | None) -> AsyncGenerator[LetterInfo, None]:
        """Those of all pages; otherwise as `listed_documents`."""
        request = pb.ListDeadLettersRequest(collection=self.collection, unreadable=self.unreadable)
        messages = _messages(
            self.matcher,
            LIST_DEAD_LETTERS,
            request,
            limit,
            self.timeout_seconds,
            items=lambda page: page.dead_letters,
        )
        async for message in messages:
            yield letter_from_proto(message)

    async def replay(self, ids: Sequence[str]) -> int:
        """Queue letters again; returns how many there were."""
        count = 0
        for _, some in chunks(ids, utf8_bytes, IDS_PER_CALL):
            request = pb.ReplayDeadLettersRequest(
                ids=some, collection=self.collection, unreadable=self.unreadable
            )
            answer = await self.matcher.call(REPLAY_DEAD_LETTERS, request, self.timeout_seconds)
            count += answer.replayed_count
        return count

    async def drop(self, ids: Sequence[str]) -> int:
        """Delete letters; returns how many there were."""
        count = 0
        for _, some in chunks(ids, utf8_bytes, IDS_PER_CALL):
            request = pb.DropDeadLettersRequest(
                ids=some, collection=self.collection, unreadable=self.unreadable
            )
            answer = await self.matcher.call(DROP_DEAD_LETTERS, request, self.timeout_seconds)
            count += answer.dropped_count
        return count


async def _messages(
    matcher: Connection,
    method: Method[ListRequest, ListResponse],
    request: ListRequest,
    limit: int | None,
    timeout_seconds: float,
    *,
    items: Callable[[ListResponse], Sequence[Any]],
) -> AsyncGenerator[Any, None]:
    """The items of all pages, at most `limit` of them."""
    left = limit
    while left is None or left > 0:
        request.page_size = MAX_PAGE_SIZE if left is None else min(left, MAX_PAGE_SIZE)
        response = await matcher.call(method, request, timeout_seconds)
        found = items(response)
        for message in found:
            yield message
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token
        left = None if left is None else left - len(found)
