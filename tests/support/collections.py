"""The collection `default` of an installation, without a service that makes it."""

from __future__ import annotations

import os
import uuid
from collections import defaultdict
from dataclasses import replace
from typing import Any

from qdrant_client import AsyncQdrantClient
from redis.asyncio import Redis

from textmatch.collection_config import CollectionConfig
from textmatch.collection_roles import Roles
from textmatch.collection_store import Collection
from textmatch.index.client import connect
from textmatch.index.index import Index
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.keys import Keys
from textmatch.queue.pending import Pending
from textmatch.queue.registry import Registry, ReindexLease
from textmatch.queue.tombstones import Tombstones

KEYS = Keys("textmatch")
CONFIG = CollectionConfig(generation="0123abcd", owner="the-tests", created_at=1.0)
_API_KEY = os.environ.get("TEXTMATCH_QDRANT_API_KEY", "")
STATE = KEYS.collection(CONFIG.name, CONFIG.generation)


async def register(redis: Redis, config: CollectionConfig = CONFIG) -> CollectionConfig:
    """Make the collection known, and the installation its owner."""
    await redis.set(KEYS.id, config.owner)
    return await Registry(redis, KEYS).add(config)


def unique_config() -> CollectionConfig:
    """A collection of a name that no other test uses."""
    return replace(CONFIG, name=f"test-{uuid.uuid4().hex}")


async def empty_qdrant(url: str) -> None:
    """Delete all collections."""
    client = connect(url, _API_KEY)
    for one in (await client.get_collections()).collections:
        await client.delete_collection(one.name)
    await client.close()


async def _confirmed() -> None:
    """The collection is never deleted."""


class LocalRoles:
    """The record of the roles of a collection, in the memory of this process."""

    def __init__(self) -> None:
        self._roles = Roles()

    async def read(self) -> Roles:
        return self._roles

    async def change(self, epoch: int, roles: Roles) -> bool:
        if epoch != self._roles.epoch:
            return False
        self._roles = roles
        return True


# Of tests that have no Redis. All indexes of a collection share it.
_local_roles: defaultdict[tuple[str, CollectionConfig], LocalRoles] = defaultdict(LocalRoles)


def make_index(
    url: str, config: CollectionConfig = CONFIG, redis: Redis | None = None, **options: Any
) -> Index:
    """The index of a collection, with a connection of its own. Its roles are in Redis, if there is one."""
    client = connect(url, **{"api_key": _API_KEY, **options})
    record = _local_roles[url, config] if redis is None else Registry(redis, KEYS).roles_of(config)
    return Index(client, config, _confirmed, record)


async def roles_of(index: Index) -> Roles:
    """The roles now, without their epoch."""
    return replace(await index.collections.refresh_roles(), epoch=0)


async def close_index(index: Index) -> None:
    """Close it and its connection."""
    index.close()
    await client_of(index).close()


def client_of(index: Index) -> AsyncQdrantClient:
    """Its connection."""
    return index._client


def make_collection(redis: Redis, index: Index, config: CollectionConfig = CONFIG) -> Collection:
    """All parts of a collection."""
    state = KEYS.collection(config.name, config.generation)
    dead_letters = DeadLetters(redis, state.letters)
    lease = ReindexLease(redis, state)
    return Collection(config, index, Pending(redis, state), Tombstones(redis, state), dead_letters, lease)


class FixedStore:
    """A store that knows one collection, which every name stands for."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection

    async def get(self, name: str) -> Any:
        return self._collection

    async def current(self, name: str) -> Any:
        return self._collection

    async def for_write(self, name: str) -> Any:
        return self._collection
