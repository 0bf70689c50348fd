"""Deletes by a filter, applied to documents that were still queued when the filter was asked for.

Qdrant itself decides what fits, so that the answer is the same as for documents that were stored before: they
are written first and found then. As in indexing.py, the filter's tombstone is either found after the write,
or it came later, and then the deleter's own search sees what was written.

Each document found leaves a tombstone of its own version, which keeps older versions from coming back and
spares newer ones that do not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from textmatch.documents import Document
from textmatch.errors import InvalidInput
from textmatch.index.store import Index
from textmatch.queue.filter_tombstones import FilterTombstone
from textmatch.queue.tombstones import Tombstones

_log = logging.getLogger(__name__)


async def bury_by_filters(
    documents: Mapping[str, Document], index: Index, tombstones: Tombstones
) -> dict[str, int]:
    """Leave tombstones for those of these documents that a filter covers; returns their versions by id."""
    oldest = min(document.version for document in documents.values())
    buried: dict[str, int] = {}
    for tombstone in await tombstones.filters.from_version(oldest):
        found = await _found(tombstone, documents, index)
        if found:
            await tombstones.add(found, tombstone.ttl_seconds)
        buried |= found
    return buried


async def _found(
    tombstone: FilterTombstone, documents: Mapping[str, Document], index: Index
) -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        async for page in index.find_versions(
            tombstone.condition, max_version=tombstone.version, ids=documents
        ):
            found |= page
    except InvalidInput as error:
        # Nothing fits a filter that cannot be read, and no document is at fault for it.
        _log.error("filter of a delete cannot be read", extra={"error": str(error)})
    return found
