"""Collections, and the requests of CollectionService."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from textmatch.collection_config import DEFAULT_PASSAGE_TOKENS, CollectionConfig, PayloadIndex
from textmatch.errors import InvalidInput
from textmatch.types import CollectionSummary
from textmatch.v1 import collection_service_pb2 as pb

# Of a page. The settings of one collection may have 17 KiB.
MAX_PAGE_SIZE = 100

_KINDS = {
    "keyword": pb.PAYLOAD_INDEX_KIND_KEYWORD,
    "integer": pb.PAYLOAD_INDEX_KIND_INTEGER,
    "float": pb.PAYLOAD_INDEX_KIND_FLOAT,
    "bool": pb.PAYLOAD_INDEX_KIND_BOOL,
    "datetime": pb.PAYLOAD_INDEX_KIND_DATETIME,
}
_KINDS_OF_PROTO = {message: kind for kind, message in _KINDS.items()}


def summary_to_proto(summary: CollectionSummary) -> pb.Collection:
    """A collection as a message."""
    config = summary.config
    message = settings_to_proto(config)
    message.model_id = summary.model_id
    message.document_count = summary.document_count
    if config.created_at:
        message.create_time.FromDatetime(datetime.fromtimestamp(config.created_at, UTC))
    return message


def summary_from_proto(message: pb.Collection) -> CollectionSummary:
    """The reverse."""
    created_at = message.create_time.ToMicroseconds() / 1e6
    config = settings_from_proto(message, created_at)
    return CollectionSummary(config, message.model_id, message.document_count)


def settings_to_proto(config: CollectionConfig) -> pb.Collection:
    """Name and settings, for CreateCollection."""
    return pb.Collection(
        name=config.name,
        bi_encoder=config.bi_encoder,
        cross_encoder=config.cross_encoder,
        lexical=config.lexical,
        payload_indexes=[
            pb.PayloadIndex(field=one.field, kind=_KINDS[one.kind], is_tenant=one.is_tenant)
            for one in config.payload_indexes
        ],
        passage_tokens=config.passage_tokens,
        passage_overlap=config.passage_overlap,
    )


def settings_from_proto(message: pb.Collection, created_at: float = 0.0) -> CollectionConfig:
    """The reverse. Neither the name nor the indexes are checked; `CollectionConfig.check` does that."""
    return CollectionConfig(
        name=message.name,
        bi_encoder=message.bi_encoder,
        cross_encoder=message.cross_encoder,
        lexical=message.lexical if message.HasField("lexical") else True,
        payload_indexes=tuple(
            PayloadIndex(one.field, _KINDS_OF_PROTO.get(one.kind, ""), one.is_tenant)
            for one in message.payload_indexes
        ),
        passage_tokens=message.passage_tokens
        if message.HasField("passage_tokens")
        else DEFAULT_PASSAGE_TOKENS,
        passage_overlap=message.passage_overlap,
        created_at=created_at,
    )


def page_of(request: pb.ListCollectionsRequest, names: Sequence[str]) -> tuple[list[str], str]:
    """The names of a page, and the token of the next one; the token is the last name of a page.

    Args:
        names: in ascending order.

    Raises:
        InvalidInput: the page size is negative.
    """
    if request.page_size < 0:
        raise InvalidInput.of_field("page_size", f"is {request.page_size}; it must not be negative")
    size = min(request.page_size or MAX_PAGE_SIZE, MAX_PAGE_SIZE)
    left = [name for name in names if name > request.page_token]
    page = left[:size]
    return page, page[-1] if len(left) > size else ""
