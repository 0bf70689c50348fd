"""What is known of collections in Redis: which there are, the roles of their physical collections, and who
changes their model. And the installation's own id.

The registry decides: a collection exists while it has an entry. Qdrant follows, so a collection is registered
before its physical collections are made, and its entry is removed before they are deleted.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis

from textmatch.collection_config import CollectionConfig
from textmatch.collection_roles import Roles
from textmatch.errors import CollectionNotFound, DependencyUnavailable, TextMatchError
from textmatch.queue.keys import CollectionKeys, Keys
from textmatch.queue.redis_client import translated_errors
from textmatch.time_slices import in_slices

_ID_BYTES = 16
_KEYS_PER_STEP = 1_000

# KEYS: collections. ARGV: name, generation. Returns whether the entry was there.
_REMOVE = """
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if entry and cjson.decode(entry).generation == ARGV[2] then
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
"""

# KEYS: lease. ARGV: token, milliseconds. Takes the lease or renews it; returns whether this token has it.
_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS: lease. ARGV: token.
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
"""

# KEYS: collections, roles. ARGV: name and generation of the collection, epoch, roles. Returns whether they
# were replaced; nothing if there is no such collection. At `maxmemory`, Redis lets a script go on that begins
# with a deletion (textmatch/queue/transport.py).
_CHANGE_ROLES = """
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry or cjson.decode(entry).generation ~= ARGV[2] then
  return false
end
local roles = redis.call('GET', KEYS[2])
if (roles and cjson.decode(roles).epoch or 0) ~= tonumber(ARGV[3]) then
  return 0
end
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[2], ARGV[4])
return 1
"""

_LEASE_SECONDS = 10.0


class LeaseHeld(TextMatchError):
    """Another process changes the model of the collection."""


class ReindexLease:
    """Lets one process at a time change the model of a collection.

    Args:
        ttl_seconds: after this time without a renewal the holder counts as dead.
    """

    def __init__(self, redis: Redis, keys: CollectionKeys, ttl_seconds: float = _LEASE_SECONDS) -> None:
        self._redis = redis
        self._key = keys.reindex_lease
        self._ttl_seconds = ttl_seconds
        self._hold = redis.register_script(_HOLD)
        self._release = redis.register_script(_RELEASE)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the lease during the block. Waits for that of a process that was killed to end.

        Raises:
            LeaseHeld: another process has the lease, or has taken it during the block, which is cancelled.
            DependencyUnavailable: Redis does not answer.
        """
        token = secrets.token_hex(_ID_BYTES)
        await self._take(token)
        renewal: asyncio.Task[None] | None = None
        try:
            # Expires when the lease is lost.
            async with asyncio.timeout(None) as limit:
                renewal = asyncio.create_task(self._renew(token, limit))
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise LeaseHeld("the lease of this reindex is lost; run the command again") from None
        finally:
            if renewal is not None:
                renewal.cancel()
            with suppress(DependencyUnavailable), translated_errors():
                await self._release(keys=[self._key], args=[token])

    async def _take(self, token: str) -> None:
        left_before = None
        while not await self._try_hold(token):
            with translated_errors():
                left = int(await self._redis.pttl(self._key))
            if left_before is not None and left > left_before:
                raise LeaseHeld("another reindex of this collection is running")
            left_before = left
            await asyncio.sleep(self._ttl_seconds / 20)

    async def _renew(self, token: str, limit: asyncio.Timeout) -> None:
        """Renew the lease until it is lost; then end the block."""
        renewed_at = time.monotonic()
        while time.monotonic() - renewed_at < self._ttl_seconds:
            await asyncio.sleep(self._ttl_seconds / 5)
            with suppress(DependencyUnavailable):
                if not await self._try_hold(token):
                    break
                renewed_at = time.monotonic()
        limit.reschedule(asyncio.get_running_loop().time())

    async def _try_hold(self, token: str) -> bool:
        with translated_errors():
            return bool(await self._hold(keys=[self._key], args=[token, int(self._ttl_seconds * 1000)]))


class RoleRegistry:
    """The record of the roles of one collection, as textmatch/collection_roles.py describes it."""

    def __init__(self, redis: Redis, keys: Keys, config: CollectionConfig) -> None:
        self._redis = redis
        self._config = config
        self._keys = [keys.collections, keys.collection(config.name, config.generation).roles]
        self._change = redis.register_script(_CHANGE_ROLES)

    async def read(self) -> Roles:
        """The roles now; none, with epoch 0, if there is no record."""
        with translated_errors():
            roles = await self._redis.get(self._keys[1])
        return Roles() if roles is None else Roles.from_mapping(json.loads(roles))

    async def change(self, epoch: int, roles: Roles) -> bool:
        """Replace the record of this epoch; False if it has another one by now.

        Raises:
            CollectionNotFound: the collection has been deleted.
        """
        values = json.dumps(roles.to_mapping())
        with translated_errors():
            changed = await self._change(
                keys=self._keys, args=[self._config.name, self._config.generation, epoch, values]
            )
        if changed is None:
            raise CollectionNotFound(self._config.name)
        return bool(changed)


class Registry:
    """Every method raises DependencyUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._remove = redis.register_script(_REMOVE)

    async def installation_id(self) -> str:
        """The id of this installation, which is made when it is first asked for."""
        with translated_errors():
            await self._redis.set(self._keys.id, secrets.token_hex(_ID_BYTES), nx=True)
            return str(await self._redis.get(self._keys.id))

    async def find(self, name: str) -> CollectionConfig | None:
        """The collection of this name."""
        with translated_errors():
            entry = await self._redis.hget(self._keys.collections, name)
        return None if entry is None else _from_json(str(entry))

    async def all(self) -> list[CollectionConfig]:
        """All collections, by name."""
        with translated_errors():
            entries = await self._redis.hvals(self._keys.collections)
        found = [_from_json(str(entry)) async for entry in in_slices(entries)]
        return sorted(found, key=lambda one: one.name)

    async def create(self, settings: CollectionConfig) -> CollectionConfig:
        """Register a new collection with these settings; returns the one that is there if there is one."""
        return await self.add(settings.created(await self.installation_id(), time.time()))

    async def add(self, config: CollectionConfig) -> CollectionConfig:
        """Register a collection that has a generation; returns the one that is there if there is one."""
        entry = json.dumps(config.to_mapping())
        with translated_errors():
            await self._redis.hsetnx(self._keys.collections, config.name, entry)
        return await self.find(config.name) or config

    async def remove(self, config: CollectionConfig) -> bool:
        """Remove the entry, unless the name stands for another collection by now."""
        arguments = [config.name, config.generation]
        with translated_errors():
            return bool(await self._remove(keys=[self._keys.collections], args=arguments))

    async def confirm(self, config: CollectionConfig) -> None:
        """Check that this collection is still the one of its name.

        Raises:
            CollectionNotFound: it was deleted.
        """
        found = await self.find(config.name)
        if found is None or found.generation != config.generation:
            raise CollectionNotFound(config.name)

    async def delete_state(self, config: CollectionConfig) -> None:
        """Delete all keys of a collection that is no longer registered, in small steps."""
        pattern = f"{self.keys_of(config).prefix}:*"
        with translated_errors():
            found: list[str] = []
            async for key in self._redis.scan_iter(pattern, count=_KEYS_PER_STEP):
                found.append(key)
                if len(found) == _KEYS_PER_STEP:
                    await self._redis.unlink(*found)
                    found = []
            if found:
                await self._redis.unlink(*found)

    def keys_of(self, config: CollectionConfig) -> CollectionKeys:
        """The keys of a collection."""
        return self._keys.collection(config.name, config.generation)

    def roles_of(self, config: CollectionConfig) -> RoleRegistry:
        """The record of the roles of a collection."""
        return RoleRegistry(self._redis, self._keys, config)


def _from_json(entry: str) -> CollectionConfig:
    return CollectionConfig.from_mapping(json.loads(entry))
