"""Which collection is in use: one for each bi-encoder, and aliases that say what each is there for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum

import grpc
from qdrant_client import AsyncQdrantClient, models

from textmatch.errors import ModelMismatch
from textmatch.index.connection import translated_errors
from textmatch.index.renewed import Renewed
from textmatch.index.schema import HNSW, dense_vector_params, lexical_vector_params

_log = logging.getLogger(__name__)

# How long a switch of the alias may go unnoticed by readers.
_ALIAS_CACHE_SECONDS = 2.0


class Role(Enum):
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
        self._roles = Renewed(self._read_roles, _ALIAS_CACHE_SECONDS)

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
            next=targets.get(self.alias + Role.NEXT.value, ""),
            previous=targets.get(self.alias + Role.PREVIOUS.value, ""),
            abandoned=targets.get(self.alias + Role.ABANDONED.value, ""),
        )
