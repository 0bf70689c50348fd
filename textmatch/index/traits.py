"""What a collection can do and what is noted beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qdrant_client import AsyncQdrantClient

from textmatch.index.connection import translated_errors
from textmatch.index.schema import LEXICAL_VECTOR

# How long new notes, such as tuned weights, may go unnoticed.
_CACHE_SECONDS = 10.0


@dataclass(frozen=True)
class CollectionTraits:
    """`has_lexical`: hybrid recall works. `notes`: JSON-like, kept in Qdrant beside the collection."""

    has_lexical: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


class TraitsCache:
    """Asks Qdrant now and then."""

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client = client
        self._known: dict[str, tuple[float, CollectionTraits]] = {}

    async def get(self, collection: str) -> CollectionTraits:
        """The traits of an existing collection.

        Raises:
            CollectionGone: there is none.
        """
        read_at, traits = self._known.get(collection, (float("-inf"), CollectionTraits()))
        if time.monotonic() - read_at < _CACHE_SECONDS:
            return traits
        async with translated_errors(collection):
            config = (await self._client.get_collection(collection)).config
        sparse = config.params.sparse_vectors or {}
        traits = CollectionTraits(LEXICAL_VECTOR in sparse, config.metadata or {})
        self._known[collection] = (time.monotonic(), traits)
        return traits

    async def note(self, collection: str, notes: Mapping[str, Any]) -> None:
        """Keep notes beside a collection; other notes stay.

        Raises:
            CollectionGone: there is none.
        """
        async with translated_errors(collection):
            await self._client.update_collection(collection, metadata=dict(notes))
        self._known.pop(collection, None)
