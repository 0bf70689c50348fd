"""The collections of an installation: made, found, taken over and deleted here.

    collection = await store.get("faq")
    await collection.index.fetch(["a"])

A request or a message resolves its collection once and passes it down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from qdrant_client import AsyncQdrantClient
from redis.asyncio import Redis

from textmatch.collection_config import DEFAULT_COLLECTION, CollectionConfig, normalized
from textmatch.errors import CollectionExists, CollectionNotFound, CollectionNotOwned, DependencyUnavailable
from textmatch.index.index import Index
from textmatch.index.ownership import PhysicalCollections
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.keys import Keys
from textmatch.queue.pending import Pending
from textmatch.queue.registry import Registry, ReindexLease
from textmatch.queue.tombstones import Tombstones
from textmatch.refreshing_cache import RefreshingCache

# How long readers may use the settings of a collection that was deleted or made again.
_CONFIG_CACHE_SECONDS = 2.0
_MAX_OPEN = 1_000
# While Redis does not answer, readers wait so long for it, and then not again for a while.
_REDIS_SECONDS = 0.25
_OUTAGE_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Collection:
    """One creation of a collection, and all that belongs to it."""

    config: CollectionConfig
    index: Index
    pending: Pending
    tombstones: Tombstones
    dead_letters: DeadLetters
    reindex_lease: ReindexLease

    @property
    def name(self) -> str:
        """The name of the collection."""
        return self.config.name


class _Entry:
    """A name that was asked for, and the collection that it stood for last."""

    def __init__(self, config: RefreshingCache[CollectionConfig]) -> None:
        self.config = config
        self.collection: Collection | None = None
        self.outage_until = 0.0

    def close(self) -> None:
        self.config.forget()
        if self.collection is not None:
            self.collection.index.close()


class CollectionStore:
    """Keeps the collections that were used last open. All methods take "" for `default`.

    Every method raises DependencyUnavailable when Redis or Qdrant does not answer, and InvalidInput for a
    name that no collection can have.

    Args:
        replicas: how many replicas of Redis must have a delete before it is accepted.

    Attributes:
        registry: which collections there are.
        unreadable: messages in the queue that could not be read, and so belong to no collection.
    """

    def __init__(
        self,
        redis: Redis,
        qdrant: AsyncQdrantClient,
        keys: Keys,
        *,
        max_open: int = _MAX_OPEN,
        replicas: int = 0,
    ) -> None:
        self._redis = redis
        self._replicas = replicas
        self._qdrant = qdrant
        self._max_open = max_open
        self.registry = Registry(redis, keys)
        self.unreadable = DeadLetters(redis, keys.letters)
        self._physical = PhysicalCollections(qdrant)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    async def get(self, name: str) -> Collection:
        """The collection of a name, as it was at most two seconds ago; for reads.

        While Redis does not answer, it is the one that was used last.

        Raises:
            CollectionNotFound: there is none. `default` always exists, perhaps empty.
        """
        name = normalized(name)
        entry = self._entry(name)
        if entry.collection is not None and time.monotonic() < entry.outage_until:
            return entry.collection
        try:
            async with asyncio.timeout(None if entry.collection is None else _REDIS_SECONDS):
                config = await entry.config.get()
        except (DependencyUnavailable, TimeoutError):
            if entry.collection is None:
                raise
            entry.outage_until = time.monotonic() + _OUTAGE_SECONDS
            return entry.collection
        except CollectionNotFound:
            self._close(name)
            raise
        if not config.generation:
            # The first write must be seen at once.
            entry.config.forget()
        return self._open(entry, config)

    async def current(self, name: str) -> Collection:
        """The collection of a name, as it is now.

        Raises:
            CollectionNotFound: there is none. `default` always exists, perhaps empty.
        """
        name = normalized(name)
        entry = self._entry(name)
        try:
            return self._open(entry, await entry.config.refresh())
        except CollectionNotFound:
            self._close(name)
            raise

    async def for_write(self, name: str) -> Collection:
        """The same, but `default` is made if it does not exist.

        Raises:
            CollectionNotFound: there is none.
            CollectionNotOwned: another installation has a collection `default` in this Qdrant.
        """
        collection = await self.current(name)
        if collection.config.generation:
            return collection
        with suppress(CollectionExists):
            await self.create(collection.config)
        return await self.current(name)

    async def create(self, settings: CollectionConfig) -> Collection:
        """Register a collection. Its first physical collection is made by `Collections.prepare`.

        Raises:
            CollectionExists: there is one with other settings.
            CollectionNotOwned: another installation has made one of this name.
        """
        settings.check()
        found = await self.registry.find(settings.name)
        if found is None:
            if await self._drop_leftovers(settings.name):
                raise CollectionNotOwned.of(settings.name)
            found = await self.registry.create(settings)
            _log.info("registered collection", extra={"collection": found.name})
        if not found.has_settings_of(settings):
            raise CollectionExists(f'there is a collection "{found.name}" with other settings')
        entry = self._entry(found.name)
        return self._open(entry, await entry.config.refresh())

    async def delete(self, name: str) -> None:
        """Delete a collection with everything in it.

        Raises:
            CollectionNotFound: there is none. What an interrupted delete has left is gone then.
        """
        name = normalized(name)
        config = await self.registry.find(name)
        self._close(name)
        if config is None:
            await self._drop_leftovers(name)
            raise CollectionNotFound(name)
        await self.registry.remove(config)
        await self._drop_leftovers(name)
        await self.registry.delete_state(config)
        _log.info("deleted collection", extra={"collection": name})

    async def adopt(self, name: str) -> Collection:
        """Take over the collection that another installation made, or this one before it lost its Redis.

        Raises:
            CollectionNotFound: none of this name is in Qdrant.
            CollectionExists: this installation has another one of this name.
        """
        name = normalized(name)
        registered = await self.registry.find(name)
        config = await self._physical.in_use(name)
        if registered is not None and registered.generation != config.generation:
            raise CollectionExists(f'this installation has another collection "{name}"; delete it first')
        adopted = await self._physical.adopt(config, await self.registry.installation_id())
        await self.registry.add(adopted)
        _log.info("adopted collection", extra={"collection": name})
        entry = self._entry(name)
        return self._open(entry, await entry.config.refresh())

    def close(self) -> None:
        """Close all collections. The connections stay open."""
        for name in list(self._entries):
            self._close(name)

    async def _drop_leftovers(self, name: str) -> bool:
        """Delete what deleted collections of a name have left: physical collections and keys in Redis.

        Returns:
            Whether another installation uses the name.
        """
        owner = await self.registry.installation_id()
        found = await self._physical.of_name(name)
        # Read after Qdrant: a collection is registered before it is in Qdrant.
        registered = await self.registry.find(name)
        generation = registered.generation if registered else ""
        is_foreign = False
        for physical in found:
            if physical.config is None or physical.config.owner != owner:
                is_foreign |= physical.is_in_use
            elif physical.config.generation != generation:
                await self.registry.delete_state(physical.config)
                await self._physical.drop(physical)
        return is_foreign

    async def _read(self, name: str) -> CollectionConfig:
        found = await self.registry.find(name)
        if found is not None:
            return found
        if name == DEFAULT_COLLECTION:
            return CollectionConfig(owner=await self.registry.installation_id())
        raise CollectionNotFound(name)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            cache = RefreshingCache(partial(self._read, name), _CONFIG_CACHE_SECONDS)
            self._entries[name] = _Entry(cache)
            if len(self._entries) > self._max_open:
                self._close(next(iter(self._entries)))
        self._entries.move_to_end(name)
        return self._entries[name]

    def _open(self, entry: _Entry, config: CollectionConfig) -> Collection:
        if entry.collection is None or entry.collection.config != config:
            if entry.collection is not None:
                entry.collection.index.close()
            keys = self.registry.keys_of(config)
            entry.collection = Collection(
                config,
                Index(self._qdrant, config, partial(self._confirm, config), self.registry.roles_of(config)),
                Pending(self._redis, keys),
                Tombstones(self._redis, keys, self._replicas),
                DeadLetters(self._redis, keys.letters),
                ReindexLease(self._redis, keys),
            )
        return entry.collection

    async def _confirm(self, config: CollectionConfig) -> None:
        try:
            await self.registry.confirm(config)
        except CollectionNotFound:
            # The next call must not find it any more.
            self._close(config.name)
            raise

    def _close(self, name: str) -> None:
        if entry := self._entries.pop(name, None):
            entry.close()
