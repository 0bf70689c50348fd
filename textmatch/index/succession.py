"""Replacing the collection in use by another.

All that the parts of the system must agree on is in four aliases, and each step is one change of aliases that
Qdrant applies whole or not at all:

    ALIAS             in use: answers queries
    ALIAS-next        being built
    ALIAS-previous    was in use; kept so that one can go back
    ALIAS-abandoned   was one of the two, and could not be written any more

Steps that depend on an alias rename it, because Qdrant refuses to rename an alias that is not there: nobody
can put a collection to use that somebody else has just abandoned.
"""

from __future__ import annotations

import logging

import grpc
from qdrant_client import AsyncQdrantClient, models

from textmatch.index.collections import Collections, Role
from textmatch.index.connection import translated_errors

_log = logging.getLogger(__name__)


class Succession:
    """The steps. Every method raises DependencyUnavailable when Qdrant does not answer."""

    def __init__(self, client: AsyncQdrantClient, collections: Collections) -> None:
        self._client = client
        self._collections = collections

    async def start(self, model_id: str, dimension: int) -> None:
        """Make this model's collection the next one; it receives writes from now on. May be repeated."""
        await self._collections.create(model_id, dimension)
        await self._change_aliases(self._create(Role.NEXT, model_id))

    async def resume(self) -> bool:
        """Make the abandoned collection the next one; says whether there was one."""
        return await self._rename(Role.ABANDONED, Role.NEXT.value)

    async def promote(self, role: Role, *, in_use: str) -> bool:
        """Put the collection of this role to use and keep the one in use as the previous one, at once.

        Returns:
            False if no collection has the role, and nothing has changed.
        """
        return await self._rename(role, "", self._create(Role.PREVIOUS, in_use))

    async def abandon(self, role: Role) -> bool:
        """Stop writing to the collection of this role; says whether there was one."""
        return await self._rename(role, Role.ABANDONED.value)

    async def drop(self, collection: str) -> None:
        """Delete a collection together with its aliases."""
        async with translated_errors():
            await self._client.delete_collection(collection)
        self._collections.forget()
        _log.info("dropped collection", extra={"collection": collection})

    async def _rename(self, role: Role, ending: str, *more: models.AliasOperations) -> bool:
        alias = self._collections.alias
        rename = models.RenameAlias(old_alias_name=alias + role.value, new_alias_name=alias + ending)
        try:
            await self._change_aliases(models.RenameAliasOperation(rename_alias=rename), *more)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return False
        return True

    def _create(self, role: Role, collection: str) -> models.CreateAliasOperation:
        alias = self._collections.alias + role.value
        return models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)
        )

    async def _change_aliases(self, *operations: models.AliasOperations) -> None:
        async with translated_errors():
            await self._client.update_collection_aliases(list(operations))
        self._collections.forget()
