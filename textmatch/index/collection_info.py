"""What a collection can do and what is noted beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qdrant_client import AsyncQdrantClient

from textmatch.index.client import CollectionGone, translated_errors
from textmatch.index.collections import RefreshingCache
from textmatch.index.schema import LEXICAL_VECTOR

# How long new notes, such as tuned weights, may go unnoticed.
_CACHE_SECONDS = 10.0


@dataclass(frozen=True)
class CollectionInfo:
    """`has_lexical`: hybrid recall works. `notes`: JSON-like, kept in Qdrant beside the collection."""

    has_lexical: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


class CollectionInfoCache:
    """Asks Qdrant now and then."""

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client = client
        self._known: dict[str, RefreshingCache[CollectionInfo]] = {}

    async def get(self, collection: str) -> CollectionInfo:
        """The traits of an existing collection.

        Raises:
            CollectionGone: there is none.
        """
        if collection not in self._known:
            self._known[collection] = RefreshingCache(partial(self._read, collection), _CACHE_SECONDS)
        try:
            return await self._known[collection].get()
        except CollectionGone:
            self.forget(collection)
            raise

    async def note(self, collection: str, notes: Mapping[str, Any]) -> None:
        """Keep notes beside a collection; other notes stay.

        Raises:
            CollectionGone: there is none.
        """
        async with translated_errors(collection):
            await self._client.update_collection(collection, metadata=dict(notes))
        self.forget(collection)

    def forget(self, collection: str) -> None:
        """Ask Qdrant the next time."""
        if known := self._known.pop(collection, None):
            known.forget()

    def forget_all(self) -> None:
        """Ask Qdrant the next time, whatever it is about."""
        for collection in list(self._known):
            self.forget(collection)

    async def _read(self, collection: str) -> CollectionInfo:
        async with translated_errors(collection):
            config = (await self._client.get_collection(collection)).config
        sparse = config.params.sparse_vectors or {}
        return CollectionInfo(LEXICAL_VECTOR in sparse, config.metadata or {})
