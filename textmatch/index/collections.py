"""Which collection is in use: one for each bi-encoder, and aliases that say what each is there for.

Replacing the collection in use by another.

All that the parts of the system must agree on is in four aliases, and each step is one change of aliases that
Qdrant applies whole or not at all:

    ALIAS             in use: answers queries
    ALIAS-next        being built
    ALIAS-previous    was in use; kept so that one can go back
    ALIAS-abandoned   was one of the two, and could not be written any more

Steps that depend on an alias rename it, because Qdrant refuses to rename an alias that is not there: nobody
can put a collection to use that somebody else has just abandoned.

Something that is read now and then, without letting callers wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

import grpc
from qdrant_client import AsyncQdrantClient, models

from textmatch.errors import ModelMismatch, TextMatchError
from textmatch.index.client import translated_errors
from textmatch.index.schema import HNSW, dense_vector_params, lexical_vector_params

Value = TypeVar("Value")


class RefreshingCache(Generic[Value]):
    """Gives out what was read last, and reads it anew meanwhile once that is half as old as it may become.

    Args:
        read: reads it, and raises only TextMatchErrors.
        max_age_seconds: what is older is not given out.
    """

    def __init__(self, read: Callable[[], Awaitable[Value]], max_age_seconds: float) -> None:
        self._read = read
        self._max_age_seconds = max_age_seconds
        self._known: tuple[float, Value] | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def get(self) -> Value:
        """What was read at most `max_age_seconds` ago.

        Raises:
            TextMatchError: there is no such thing, and it cannot be read.
        """
        if self._known is None:
            return await self.refresh()
        read_at, value = self._known
        age_seconds = time.monotonic() - read_at
        if age_seconds >= self._max_age_seconds:
            return await self.refresh()
        if age_seconds >= self._max_age_seconds / 2 and self._renewal is None:
            self._renewal = asyncio.create_task(self._renew())
        return value

    async def refresh(self) -> Value:
        """What is read now.

        Raises:
            TextMatchError: it cannot be read.
        """
        started = time.monotonic()
        value = await self._read()
        # A reading that started later knows better.
        if self._known is None or self._known[0] <= started:
            self._known = (started, value)
        return value

    def forget(self) -> None:
        """What was read before now is not given out."""
        self._known = None
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None

    async def _renew(self) -> None:
        # Who needs it once it is too old is told.
        with suppress(TextMatchError):
            await self.refresh()
        self._renewal = None


_log = logging.getLogger(__name__)

# How long a switch of the alias may go unnoticed by readers.
_ALIAS_CACHE_SECONDS = 2.0


class CollectionRole(Enum):
    """What a collection is there for besides the one in use; the values are endings of its alias."""

    # Being built; becomes the one in use.
    NEXT = "-next"
    # Was in use; kept so that one can go back.
    PREVIOUS = "-previous"
    # Was one of the two, and could not be written any more.
    ABANDONED = "-abandoned"


@dataclass(frozen=True)
class Roles:
    """Names of collections, which are model ids; "" where there is none."""

    in_use: str = ""
    next: str = ""
    previous: str = ""
    abandoned: str = ""

    @property
    def mirrors(self) -> tuple[str, ...]:
        """Those that receive every write and delete as well, after the one in use."""
        return tuple(one for one in (self.next, self.previous) if one)


class Collections:
    """Resolves the aliases, and creates the first collection."""

    def __init__(self, client: AsyncQdrantClient, alias: str) -> None:
        self._client = client
        self.alias = alias
        self._roles = RefreshingCache(self._read_roles, _ALIAS_CACHE_SECONDS)

    async def roles(self) -> Roles:
        """Which collection does what, as known for at most two seconds."""
        roles = await self._roles.get()
        if not roles.in_use:
            # The first collection is seen at once.
            self.forget()
        return roles

    async def refresh_roles(self) -> Roles:
        """The same, asking Qdrant."""
        return await self._roles.refresh()

    async def current(self) -> str:
        """The collection in use; "" while there is none."""
        return (await self.roles()).in_use

    async def refresh(self) -> str:
        """The same, asking Qdrant."""
        return (await self.refresh_roles()).in_use

    def forget(self) -> None:
        """Ask Qdrant the next time."""
        self._roles.forget()

    async def prepare(self, model_id: str, dimension: int) -> None:
        """Make sure that the alias points at the collection of this model, creating both if there is none.

        Raises:
            ModelMismatch: the alias points at the collection of another model.
        """
        if await self.current() == model_id:
            return
        if current := await self.refresh():
            if current == model_id:
                return
            raise ModelMismatch(index_model_id=current, encoder_model_id=model_id)
        await self.create(model_id, dimension)
        alias = models.CreateAlias(collection_name=model_id, alias_name=self.alias)
        async with translated_errors():
            await self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
        if (current := await self.refresh()) != model_id:
            raise ModelMismatch(index_model_id=current, encoder_model_id=model_id)

    async def create(self, model_id: str, dimension: int) -> None:
        """Make sure that the collection of this model exists; no alias points at a new one."""
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
                    # Another worker was quicker.
                    if error.code() not in {grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT}:
                        raise
        _log.info("created collection", extra={"collection": model_id})

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


class AliasSwitcher:
    """The steps. Every method raises DependencyUnavailable when Qdrant does not answer."""

    def __init__(self, client: AsyncQdrantClient, collections: Collections) -> None:
        self._client = client
        self._collections = collections

    async def start(self, model_id: str, dimension: int) -> None:
        """Make this model's collection the next one; it receives writes from now on. May be repeated."""
        await self._collections.create(model_id, dimension)
        await self._change_aliases(self._create(CollectionRole.NEXT, model_id))

    async def resume(self) -> bool:
        """Make the abandoned collection the next one; says whether there was one."""
        return await self._rename(CollectionRole.ABANDONED, CollectionRole.NEXT.value)

    async def promote(self, role: CollectionRole, *, in_use: str) -> bool:
        """Put the collection of this role to use and keep the one in use as the previous one, at once.

        Returns:
            False if no collection has the role, and nothing has changed.
        """
        return await self._rename(role, "", self._create(CollectionRole.PREVIOUS, in_use))

    async def abandon(self, role: CollectionRole) -> bool:
        """Stop writing to the collection of this role; says whether there was one."""
        return await self._rename(role, CollectionRole.ABANDONED.value)

    async def drop(self, collection: str) -> None:
        """Delete a collection together with its aliases."""
        async with translated_errors():
            await self._client.delete_collection(collection)
        self._collections.forget()
        _log.info("dropped collection", extra={"collection": collection})

    async def _rename(self, role: CollectionRole, ending: str, *more: models.AliasOperations) -> bool:
        alias = self._collections.alias
        rename = models.RenameAlias(old_alias_name=alias + role.value, new_alias_name=alias + ending)
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
        self._collections.forget()
