"""Pages of documents and of dead letters, which are smaller than an answer may be.

response = await documents_page_to_proto(documents, 100)
response.next_page_token    # the id of the last document; "" on the last page
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from textmatch.documents import Document
from textmatch.errors import InvalidInput
from textmatch.types import FoundDocuments, LetterInfo
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import from_proto, to_proto
from textmatch.wire.matching import MAX_ANSWER_BYTES

MAX_PAGE_SIZE = 1_000
_DEFAULT_PAGE_SIZE = 100
# A tag and a length before each message or string of an answer.
_FRAME_BYTES = 8


def page_size(requested: int) -> int:
    """How many items a page may have.

    Raises:
        InvalidInput: it is negative.
    """
    if requested < 0:
        raise InvalidInput.of_field("page_size", f"is {requested}; it must not be negative")
    return min(requested or _DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def fields_to_read(request: pb.ListDocumentsRequest) -> Sequence[str]:
    """The parts of documents that the answer has."""
    omitted = {"text": request.omit_text, "attributes": request.omit_attributes}
    return [name for name in ("id", "text", "attributes", "version") if not omitted.get(name)]


async def documents_page_to_proto(documents: AsyncIterator[Document], size: int) -> pb.ListDocumentsResponse:
    """The first of the documents: at most `size`, and as many as fit. The rest is not read."""
    response = pb.ListDocumentsResponse()
    messages = ((one.id, to_proto(one)) async for one in documents)
    response.next_page_token = await _fill(response.documents, messages, size)
    return response


async def documents_by_id_to_proto(
    found: AsyncIterator[tuple[str, Document | None]],
) -> pb.GetDocumentsResponse:
    """The answer for as many of the ids as fit. The rest is not read.

    Args:
        found: each id with its document, or with None if there is none.
    """
    response = pb.GetDocumentsResponse()
    size_bytes = 0
    async for document_id, document in found:
        message = None if document is None else to_proto(document)
        size_bytes += _FRAME_BYTES + (len(document_id.encode()) if message is None else message.ByteSize())
        if response.answered_count and size_bytes > MAX_ANSWER_BYTES:
            break
        if message is None:
            response.missing_ids.append(document_id)
        else:
            response.documents.append(message)
        response.answered_count += 1
    return response


def found_documents(responses: Sequence[pb.GetDocumentsResponse]) -> FoundDocuments:
    """The documents and missing ids of several answers together."""
    return FoundDocuments(
        tuple(from_proto(message) for response in responses for message in response.documents),
        tuple(one for response in responses for one in response.missing_ids),
    )


async def letters_page_to_proto(
    letters: AsyncIterator[tuple[str, LetterInfo]], size: int
) -> pb.ListDeadLettersResponse:
    """The first of the dead letters: at most `size`, and as many as fit. The rest is not read.

    Args:
        letters: each with the page token of the page after it.
    """
    response = pb.ListDeadLettersResponse()
    messages = ((token, _letter_to_proto(letter)) async for token, letter in letters)
    response.next_page_token = await _fill(response.dead_letters, messages, size)
    return response


def letter_from_proto(message: pb.DeadLetter) -> LetterInfo:
    """A dead letter of a page."""
    return LetterInfo(
        id=message.id,
        reason=message.reason,
        error=message.error,
        failed_at=message.fail_time.ToMicroseconds() / 1e6,
        text=message.text if message.HasField("text") else None,
        version=message.version,
        raw=message.raw if message.HasField("raw") else None,
    )


def _letter_to_proto(letter: LetterInfo) -> pb.DeadLetter:
    message = pb.DeadLetter(
        id=letter.id,
        reason=letter.reason,
        error=letter.error,
        text=letter.text,
        version=letter.version,
        raw=letter.raw,
    )
    message.fail_time.FromDatetime(datetime.fromtimestamp(letter.failed_at, UTC))
    return message


async def _fill(page: Any, messages: AsyncIterator[tuple[str, Any]], size: int) -> str:
    """Add the first messages to a repeated field: at most `size`, and as many as fit.

    Args:
        messages: each with the page token of the page after it.

    Returns:
        The token of the next page; "" if there is none.
    """
    size_bytes = 0
    last = ""
    async for token, message in messages:
        size_bytes += message.ByteSize() + _FRAME_BYTES
        if last and (len(page) == size or size_bytes > MAX_ANSWER_BYTES):
            return last
        page.append(message)
        last = token
    return ""
