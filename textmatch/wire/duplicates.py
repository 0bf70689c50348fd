"""Searches for duplicates: options and pages of pairs, to and from messages.

Limits are checked in both directions: the client reports a bad option before it sends anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from textmatch.documents import Document, id_violation
from textmatch.errors import Violation, raise_violations
from textmatch.time_slices import in_slices
from textmatch.types import MAX_NEIGHBORS, DuplicateOptions, DuplicatePage, DuplicatePair
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import from_proto
from textmatch.wire.filters import filter_from_proto, filter_to_proto

# A page with long texts is sent in several messages.
_MAX_MESSAGE_BYTES = 1024 * 1024


def duplicates_request(
    options: DuplicateOptions, *, collection: str, against: str
) -> pb.FindDuplicatesRequest:
    """Checked options as a message.

    Raises:
        InvalidInput: naming every option that is out of range.
    """
    _check(options)
    return pb.FindDuplicatesRequest(
        collection=collection,
        against=against,
        filter=filter_to_proto(options.where, "where") if options.where is not None else None,
        min_score=options.min_score,
        neighbors=options.neighbors,
        omit_rerank=not options.rerank,
        omit_text=options.omit_text,
        resume_token=options.resume_token,
    )


def duplicate_options(message: pb.FindDuplicatesRequest) -> DuplicateOptions:
    """Checked options with defaults filled in.

    Raises:
        InvalidInput: naming the fields and their limits.
    """
    options = DuplicateOptions(
        min_score=message.min_score or DuplicateOptions.min_score,
        neighbors=message.neighbors or DuplicateOptions.neighbors,
        where=filter_from_proto(message.filter, "filter") if message.HasField("filter") else None,
        rerank=not message.omit_rerank,
        omit_text=message.omit_text,
        resume_token=message.resume_token,
    )
    _check(options)
    return options


async def page_to_proto(
    page: DuplicatePage, options: DuplicateOptions, resume_token: str
) -> AsyncIterator[pb.FindDuplicatesResponse]:
    """The page in one message, or in several if it is large. Other calls run in between.

    Args:
        resume_token: of the page before, for all but the last message.
    """
    response = pb.FindDuplicatesResponse(resume_token=resume_token)
    size_bytes = 0
    async for pair in in_slices(page.pairs):
        message = _pair_to_proto(pair, omit_text=options.omit_text)
        size_bytes += message.ByteSize()
        if response.pairs and size_bytes > _MAX_MESSAGE_BYTES:
            yield response
            response = pb.FindDuplicatesResponse(resume_token=resume_token)
            size_bytes = message.ByteSize()
        response.pairs.append(message)
    response.resume_token = page.resume_token
    response.compared_count = page.compared_count
    response.scored_count = page.scored_count
    response.is_last = page.is_last
    yield response


def page_from_proto(messages: Sequence[pb.FindDuplicatesResponse]) -> DuplicatePage:
    """The page that was sent in these messages."""
    last = messages[-1]
    return DuplicatePage(
        pairs=tuple(_pair_from_proto(pair) for message in messages for pair in message.pairs),
        resume_token=last.resume_token,
        compared_count=last.compared_count,
        scored_count=last.scored_count,
        is_last=last.is_last,
    )


def _check(options: DuplicateOptions) -> None:
    violations: list[Violation | None] = []
    if not 0.0 < options.min_score <= 1.0:
        description = f"is {options.min_score}; it must be above 0 and at most 1"
        violations.append(Violation.of_field("min_score", description))
    if not 1 <= options.neighbors <= MAX_NEIGHBORS:
        description = f"is {options.neighbors}; it must be 1 to {MAX_NEIGHBORS}"
        violations.append(Violation.of_field("neighbors", description))
    if options.resume_token:
        violations.append(id_violation("resume_token", options.resume_token))
    raise_violations(violations)


def _pair_to_proto(pair: DuplicatePair, *, omit_text: bool) -> pb.DuplicatePair:
    return pb.DuplicatePair(
        first=_document_to_proto(pair.first, omit_text=omit_text),
        second=_document_to_proto(pair.second, omit_text=omit_text),
        score=pair.score,
        recall_score=pair.recall_score,
        rerank_score=pair.rerank_score,
    )


def _document_to_proto(document: Document, *, omit_text: bool) -> pb.Document:
    text = "" if omit_text else document.text
    return pb.Document(id=document.id, text=text, version=document.version)


def _pair_from_proto(message: pb.DuplicatePair) -> DuplicatePair:
    return DuplicatePair(
        first=from_proto(message.first),
        second=from_proto(message.second),
        score=message.score,
        recall_score=message.recall_score,
        rerank_score=message.rerank_score if message.HasField("rerank_score") else None,
    )
