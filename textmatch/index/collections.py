"""Collections in Qdrant: their aliases and roles, their properties, and changes of roles.

Each bi-encoder has one collection, named for its model id. Four aliases give collections their roles:

    ALIAS             in use: answers queries
    ALIAS-next        being built
    ALIAS-previous    was in use; kept for a rollback
    ALIAS-abandoned   was next or previous, but could no longer be written

Qdrant applies one change of aliases as a whole or not at all. A step that depends on a role renames its
alias. Qdrant refuses to rename a missing alias, so one process cannot promote a collection that another
process has just abandoned.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Generic, TypeVar

import grpc
from qdrant_client import AsyncQdrantClient, models

from textmatch.errors import ModelMismatch, TextMatchError
from textmatch.index.client import CollectionGone, translated_errors
from textmatch.index.schema import HNSW, LEXICAL_VECTOR, dense_vector_params, lexical_vector_params

# How long readers may use an outdated alias, and outdated notes such as tuned weights.
_ROLES_CACHE_SECONDS = 2.0
_INFO_CACHE_SECONDS = 10.0

_log = logging.getLogger(__name__)

Value = TypeVar("Value")


class CollectionRole(Enum):
    """A role other than "in use". The value is the suffix of its alias."""

    NEXT = "-next"
    PREVIOUS = "-previous"
    ABANDONED = "-abandoned"


@dataclass(frozen=True)
class Roles:
    """The name of the collection in each role; "" if there is none. Names are model ids."""

    in_use: str = ""
    next: str = ""
    previous: str = ""
    abandoned: str = ""

    @property
    def dual_write_targets(self) -> tuple[str, ...]:
        """The collections that receive every write and delete too, after the one in use."""
        return tuple(one for one in (self.next, self.previous) if one)


@dataclass(frozen=True)
class CollectionInfo:
    """`has_lexical`: it has a BM25 index. `notes`: JSON-like metadata kept with the collection."""

    has_lexical: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


class RefreshingCache(Generic[Value]):
    """A cached value that is refreshed in the background before it expires.

    Args:
        read: reads the value. It must raise TextMatchErrors only.
        max_age_seconds: older values are not returned. The background refresh starts at half this age.
    """

    def __init__(self, read: Callable[[], Awaitable[Value]], max_age_seconds: float) -> None:
        self._read = read
        self._max_age_seconds = max_age_seconds
        self._cached: tuple[float, Value] | None = None
        self._refresh_task: asyncio.Task[None] | None = None

    async def get(self) -> Value:
        """The value, at most `max_age_seconds` old.

        Raises:
            TextMatchError: there is no such value, and it cannot be read.
        """
        if self._cached is None:
            return await self.refresh()
        read_at, value = self._cached
        age_seconds = time.monotonic() - read_at
        if age_seconds >= self._max_age_seconds:
            return await self.refresh()
        if age_seconds >= self._max_age_seconds / 2 and self._refresh_task is None:
            self._refresh_task = asyncio.create_task(self._refresh_in_background())
        return value

    async def refresh(self) -> Value:
        """Read the value now.

        Raises:
            TextMatchError: it cannot be read.
        """
        started = time.monotonic()
        value = await self._read()
        # A read that started later may have finished earlier.
        if self._cached is None or self._cached[0] <= started:
            self._cached = (started, value)
        return value

    def forget(self) -> None:
        """Drop the cached value and stop a background refresh."""
        self._cached = None
        if self._refresh_task is not None:
            self._refresh_task.cancel()
            self._refresh_task = None

    async def _refresh_in_background(self) -> None:
        # The caller that finds the value expired gets the error.
        with suppress(TextMatchError):
            await self.refresh()
        self._refresh_task = None


class Collections:
    """Reads roles and properties of collections through short-lived caches, and creates collections.

    Every method raises DependencyUnavailable when Qdrant does not answer.
    """

    def __init__(self, client: AsyncQdrantClient, alias: str) -> None:
        self._client = client
        self.alias = alias
        self._roles = RefreshingCache(self._read_roles, _ROLES_CACHE_SECONDS)
        self._infos: dict[str, RefreshingCache[CollectionInfo]] = {}

    async def roles(self) -> Roles:
        """The collection of each role, at most two seconds old."""
        roles = await self._roles.get()
        if not roles.in_use:
            # The first collection must be seen at once.
            self.forget_roles()
        return roles

    async def in_use(self) -> str:
        """The collection in use, at most two seconds old; "" while there is none."""
        return (await self.roles()).in_use

    async def refresh_roles(self) -> Roles:
        """The collection of each role, read from Qdrant now."""
        return await self._roles.refresh()

    def forget_roles(self) -> None:
        """Read the roles from Qdrant next time."""
        self._roles.forget()

    async def info(self, collection: str) -> CollectionInfo:
        """The properties of an existing collection, at most ten seconds old.

        Raises:
            CollectionGone: there is no such collection.
        """
        if collection not in self._infos:
            self._infos[collection] = RefreshingCache(
                partial(self._read_info, collection), _INFO_CACHE_SECONDS
            )
        try:
            return await self._infos[collection].get()
        except CollectionGone:
            # Its name came from an alias that has been switched since.
            self.forget_roles()
            self._forget_info(collection)
            raise

    async def note(self, collection: str, notes: Mapping[str, Any]) -> None:
        """Add notes to a collection. Its other notes stay.

        Raises:
            CollectionGone: there is no such collection.
        """
        async with translated_errors(collection):
            await self._client.update_collection(collection, metadata=dict(notes))
        self._forget_info(collection)

    async def prepare(self, model_id: str, dimension: int) -> None:
        """Make sure that the collection of this model is in use. Creates it if no collection is in use.

        Raises:
            ModelMismatch: another model's collection is in use.
        """
        if await self.in_use() == model_id:
            return
        if in_use := (await self.refresh_roles()).in_use:
            if in_use == model_id:
                return
            raise ModelMismatch(index_model_id=in_use, encoder_model_id=model_id)
        await self.create(model_id, dimension)
        alias = models.CreateAlias(collection_name=model_id, alias_name=self.alias)
        async with translated_errors():
            await self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
        if (in_use := (await self.refresh_roles()).in_use) != model_id:
            raise ModelMismatch(index_model_id=in_use, encoder_model_id=model_id)

    async def create(self, model_id: str, dimension: int) -> None:
        """Make sure that the collection of this model exists. A new one has no role yet."""
        async with translated_errors():
            if not await self._client.collection_exists(model_id):
                try:
                    await self._client.create_collection(
                        model_id,
                        vectors_config=dense_vector_params(dimension),
                        sparse_vectors_config=lexical_vector_params(),
                        hnsw_config=HNSW,
                    )
                except grpc.aio.AioRpcError as error:
                    # Another process created it first.
                    if error.code() not in {grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT}:
                        raise
        _log.info("created collection", extra={"collection": model_id})

    def close(self) -> None:
        """Drop all caches and stop their background refreshes."""
        self.forget_roles()
        for collection in list(self._infos):
            self._forget_info(collection)

    def _forget_info(self, collection: str) -> None:
        if cached := self._infos.pop(collection, None):
            cached.forget()

    async def _read_roles(self) -> Roles:
        async with translated_errors():
            response = await self._client.get_aliases()
        targets = {entry.alias_name: entry.collection_name for entry in response.aliases}
        return Roles(
            in_use=targets.get(self.alias, ""),
            next=targets.get(self.alias + CollectionRole.NEXT.value, ""),
            previous=targets.get(self.alias + CollectionRole.PREVIOUS.value, ""),
            abandoned=targets.get(self.alias + CollectionRole.ABANDONED.value, ""),
        )

    async def _read_info(self, collection: str) -> CollectionInfo:
        async with translated_errors(collection):
            config = (await self._client.get_collection(collection)).config
        sparse_vectors = config.params.sparse_vectors or {}
        return CollectionInfo(LEXICAL_VECTOR in sparse_vectors, config.metadata or {})


class AliasSwitcher:
    """Changes the roles of collections. Each method is one atomic step.

    Every method raises DependencyUnavailable when Qdrant does not answer.
    """

    def __init__(self, client: AsyncQdrantClient, collections: Collections) -> None:
        self._client = client
        self._collections = collections

    async def start(self, model_id: str, dimension: int) -> None:
        """Make this model's collection the next one. It receives writes from now on. May be repeated."""
        await self._collections.create(model_id, dimension)
        await self._change_aliases(self._create(CollectionRole.NEXT, model_id))

    async def resume(self) -> bool:
        """Make the abandoned collection the next one; False if there is none."""
        return await self._rename(CollectionRole.ABANDONED, CollectionRole.NEXT.value)

    async def promote(self, role: CollectionRole, *, in_use: str) -> bool:
        """Use the collection of this role, and make the one in use the previous one, in one step.

        Returns:
            False if no collection has the role; nothing has changed then.
        """
        return await self._rename(role, "", self._create(CollectionRole.PREVIOUS, in_use))

    async def abandon(self, role: CollectionRole) -> bool:
        """Stop writing to the collection of this role; False if there is none."""
        return await self._rename(role, CollectionRole.ABANDONED.value)

    async def drop(self, collection: str) -> None:
        """Delete a collection together with its aliases."""
        async with translated_errors():
            await self._client.delete_collection(collection)
        self._collections.forget_roles()
        _log.info("dropped collection", extra={"collection": collection})

    async def _rename(self, role: CollectionRole, suffix: str, *more: models.AliasOperations) -> bool:
        alias = self._collections.alias
        rename = models.RenameAlias(old_alias_name=alias + role.value, new_alias_name=alias + suffix)
        try:
            await self._change_aliases(models.RenameAliasOperation(rename_alias=rename), *more)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return False
        return True

    def _create(self, role: CollectionRole, collection: str) -> models.CreateAliasOperation:
        alias = self._collections.alias + role.value
        return models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)
        )

    async def _change_aliases(self, *operations: models.AliasOperations) -> None:
        async with translated_errors():
            await self._client.update_collection_aliases(list(operations))
        self._collections.forget_roles()
