"""Strict mode: a collection refuses filters on payload keys that have no index, as a real server does.

The other limits of strict mode are not available.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Final

from google.protobuf.message import Message
from qdrant_client import grpc as pb

from standalone.qdrant_edge.errors import RequestError, strict, unsupported

_AVAILABLE: Final = {"enabled", "unindexed_filtering_retrieve", "unindexed_filtering_update"}
_CONDITIONS: Final = (pb.FieldCondition, pb.IsEmptyCondition, pb.IsNullCondition)
# The condition of an upsert is not checked, and points have no filters.
_SKIPPED: Final = {"update_filter", "points_list", "vectors", "payload"}

STRICT: Final = pb.StrictModeConfig(
    enabled=True, unindexed_filtering_retrieve=False, unindexed_filtering_update=False
)


def check_available(config: pb.StrictModeConfig) -> None:
    """Refuse limits that a real server would apply and this one would ignore.

    Raises:
        RequestError: naming the limit.
    """
    for field, _ in config.ListFields():
        if field.name not in _AVAILABLE:
            raise unsupported(f"strict mode's {field.name}")


def check_filters(
    request: Message, config: pb.StrictModeConfig, indexed: AbstractSet[str], *, is_update: bool
) -> None:
    """Check the filters in a request.

    Args:
        indexed: the payload keys that have an index.

    Raises:
        RequestError: INVALID_ARGUMENT, naming the first key without an index.
    """
    name = "unindexed_filtering_update" if is_update else "unindexed_filtering_retrieve"
    limits = {field.name: value for field, value in config.ListFields()}
    if not config.enabled or limits.get(name, True):
        return
    for key in _filtered_keys(request):
        if key.replace('"', "") not in indexed:
            raise _missing_index(key)


def _filtered_keys(message: Message) -> Iterator[str]:
    """The payload keys of all conditions in a message."""
    if isinstance(message, _CONDITIONS):
        yield message.key
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.name in _SKIPPED:
            continue
        if field.message_type.GetOptions().map_entry:
            continue
        for one in value if field.is_repeated else [value]:
            if not isinstance(one, pb.PointStruct):
                yield from _filtered_keys(one)


def _missing_index(key: str) -> RequestError:
    return strict(
        f'Index required but not found for "{key}" of one of the following types: [keyword, integer, float,'
        " bool]. Help: Create an index for this key or use a different filter."
    )
