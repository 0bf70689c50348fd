"""The physical collections of one collection: their roles and properties, and changes of roles.

Each bi-encoder has a physical collection of its own. It is named for the collection, the model and the
generation, and referred to by its model id. Four aliases give roles:

    NAME               in use: answers queries
    NAME--next         being built
    NAME--previous     was in use; kept for a rollback
    NAME--abandoned    was next or previous, but could no longer be written

Qdrant applies one change of aliases as a whole or not at all. A step that depends on a role renames its
alias. Qdrant refuses to rename a missing alias, so one process cannot promote a collection that another
process has just abandoned.

The settings of the collection are a note of each physical collection, with the installation that owns it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import grpc
from qdrant_client import AsyncQdrantClient, models
from qdrant_client import grpc as qdrant

from textmatch.collection_config import SEPARATOR, CollectionConfig
from textmatch.errors import CollectionNotFound, CollectionNotOwned, InvalidInput, ModelMismatch
from textmatch.index.client import CollectionGone, translated_errors
from textmatch.index.schema import (
    HNSW,
    LEXICAL_VECTOR,
    PayloadIndexes,
    dense_vector_params,
    lexical_vector_params,
)
from textmatch.refreshing_cache import RefreshingCache

# The note with the settings.
CONFIG_NOTE = "collection"

# How long readers may use an outdated alias, and outdated notes such as tuned weights.
_ROLES_CACHE_SECONDS = 2.0
_INFO_CACHE_SECONDS = 10.0
# Nodes of a cluster learn of collections and aliases one after the other, within moments.
_LAG_SECONDS = 5.0

_log = logging.getLogger(__name__)


class CollectionRole(Enum):
    """A role other than "in use". The value is the suffix of its alias."""

    NEXT = f"{SEPARATOR}next"
    PREVIOUS = f"{SEPARATOR}previous"
    ABANDONED = f"{SEPARATOR}abandoned"


@dataclass(frozen=True)
class Roles:
    """The model id of the physical collection in each role; "" if there is none."""

    in_use: str = ""
    next: str = ""
    previous: str = ""
    abandoned: str = ""

    @property
    def dual_write_targets(self) -> tuple[str, ...]:
        """The collections that receive every write and delete too, after the one in use."""
        return tuple(one for one in (self.next, self.previous) if one)

    @property
    def written(self) -> tuple[str, ...]:
        """The one in use, if there is one, and the dual-write targets."""
        return tuple(one for one in (self.in_use, *self.dual_write_targets) if one)


@dataclass(frozen=True)
class CollectionInfo:
    """The properties of a physical collection.

    Attributes:
        has_lexical: it has a BM25 index.
        indexed: the payload keys that have an index, as Qdrant writes them.
        notes: JSON-like metadata kept with it.
    """

    has_lexical: bool = False
    indexed: frozenset[str] = frozenset()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> CollectionConfig | None:
        """The settings with which it was made; None if it was not made by textmatch."""
        try:
            return CollectionConfig.from_mapping(self.notes[CONFIG_NOTE])
        except (InvalidInput, KeyError):
            return None


async def read_info(client: AsyncQdrantClient, physical: str) -> CollectionInfo:
    """The properties of a physical collection.

    Raises:
        CollectionGone: there is no such collection.
    """
    async with translated_errors(physical):
        found = await client.get_collection(physical)
    config = found.config
    has_lexical = LEXICAL_VECTOR in (config.params.sparse_vectors or {})
    return CollectionInfo(has_lexical, frozenset(found.payload_schema), config.metadata or {})


class Collections:
    """Reads roles and properties through short-lived caches, and creates physical collections.

    Every method raises DependencyUnavailable when Qdrant does not answer.

    Args:
        confirm: raises CollectionNotFound if the collection has been deleted.
    """

    def __init__(
        self, client: AsyncQdrantClient, config: CollectionConfig, confirm: Callable[[], Awaitable[None]]
    ) -> None:
        self._client = client
        self.config = config
        self._confirm = confirm
        self._payload_indexes = PayloadIndexes(config.payload_indexes)
        self._roles = RefreshingCache(self._read_roles, _ROLES_CACHE_SECONDS)
        self._infos: dict[str, RefreshingCache[CollectionInfo]] = {}

    async def roles(self) -> Roles:
        """The model of each role, at most two seconds old.

        Raises:
            CollectionNotOwned: another installation made the collection of this name.
            CollectionNotFound: the collection was deleted and created again.
        """
        roles = await self._roles.get()
        if not roles.in_use:
            # The first collection must be seen at once.
            self.forget_roles()
        return roles

    async def in_use(self) -> str:
        """The model in use, at most two seconds old; "" while there is none. Raises as `roles`."""
        return (await self.roles()).in_use

    async def refresh_roles(self) -> Roles:
        """The model of each role, read from Qdrant now. Raises as `roles`."""
        return await self._roles.refresh()

    def forget_roles(self) -> None:
        """Read the roles from Qdrant next time."""
        self._roles.forget()

    async def info(self, model_id: str) -> CollectionInfo:
        """The properties of an existing physical collection, at most ten seconds old.

        Raises:
            CollectionGone: there is no such collection.
        """
        try:
            return await self._info(model_id)
        except CollectionGone:
            # Its name came from an alias that has been switched since.
            self.forget_roles()
            self._forget_info(model_id)
            raise

    async def note(self, model_id: str, notes: Mapping[str, Any]) -> None:
        """Add notes to a physical collection. Its other notes stay.

        Raises:
            CollectionGone: there is no such collection.
        """
        physical = self.config.physical(model_id)
        async with translated_errors(physical):
            await self._client.update_collection(physical, metadata=dict(notes))
        self._forget_info(model_id)

    async def prepare(self, model_id: str, dimension: int) -> None:
        """Make sure that this model is in use. Creates its physical collection if no model is in use.

        Raises:
            ModelMismatch: another model is in use.
            CollectionNotFound: the collection has been deleted.
            CollectionNotOwned: another installation made the collection of this name.
        """
        if await self.in_use() == model_id:
            return
        if in_use := (await self.refresh_roles()).in_use:
            if in_use == model_id:
                return
            raise ModelMismatch(index_model_id=in_use, encoder_model_id=model_id)
        await self.create(model_id, dimension)
        alias = models.CreateAlias(
            collection_name=self.config.physical(model_id), alias_name=self.config.name
        )
        async with translated_errors():
            await self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
        await self._confirm_made(model_id)
        if (in_use := (await self.refresh_roles()).in_use) != model_id:
            raise ModelMismatch(index_model_id=in_use, encoder_model_id=model_id)

    async def create(self, model_id: str, dimension: int) -> None:
        """Make sure that the physical collection of this model exists. A new one has no role yet.

        Raises:
            CollectionNotFound: the collection has been deleted; nothing is left behind.
        """
        await self._confirm()
        physical = self.config.physical(model_id)
        async with translated_errors():
            if not await self._client.collection_exists(physical):
                try:
                    await self._client.create_collection(
                        physical,
                        vectors_config=dense_vector_params(dimension),
                        sparse_vectors_config=lexical_vector_params() if self.config.lexical else None,
                        hnsw_config=HNSW,
                        metadata={CONFIG_NOTE: self.config.to_mapping()},
                    )
                except grpc.aio.AioRpcError as error:
                    # Another process created it first.
                    if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                        raise
                _log.info("created collection", extra={"physical": physical})
        await self.ensure_payload_indexes(model_id)
        await self._confirm_made(model_id)

    async def ensure_payload_indexes(self, model_id: str) -> None:
        """Create the payload indexes that a physical collection lacked at most ten seconds ago.

        Raises:
            CollectionGone: there is no such collection.
        """
        missing = self._payload_indexes.missing((await self.info(model_id)).indexed)
        if missing:
            await self._payload_indexes.create(self._client, self.config.physical(model_id), missing)
            self._forget_info(model_id)

    async def lag_seconds(self, model_id: str) -> float:
        """How long other nodes of a cluster may not know what was just changed; 0 for the embedded server."""
        request = qdrant.CollectionClusterInfoRequest(collection_name=self.config.physical(model_id))
        async with translated_errors(request.collection_name):
            try:
                await self._client.grpc_collections.CollectionClusterInfo(request, timeout=_LAG_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
                return 0.0
        return _LAG_SECONDS

    def close(self) -> None:
        """Drop all caches and stop their background refreshes."""
        self.forget_roles()
        for model_id in list(self._infos):
            self._forget_info(model_id)

    async def _confirm_made(self, model_id: str) -> None:
        """Delete what was just made if the collection was deleted at the same time."""
        try:
            await self._confirm()
        except CollectionNotFound:
            async with translated_errors():
                await self._client.delete_collection(self.config.physical(model_id))
            raise

    async def _info(self, model_id: str) -> CollectionInfo:
        if model_id not in self._infos:
            read = partial(read_info, self._client, self.config.physical(model_id))
            self._infos[model_id] = RefreshingCache(read, _INFO_CACHE_SECONDS)
        return await self._infos[model_id].get()

    def _forget_info(self, model_id: str) -> None:
        if cached := self._infos.pop(model_id, None):
            cached.forget()

    async def _read_roles(self) -> Roles:
        async with translated_errors():
            response = await self._client.get_aliases()
        targets = {entry.alias_name: entry.collection_name for entry in response.aliases}
        in_use = targets.get(self.config.name, "")
        model_id = self.config.model_of(in_use)
        if model_id:
            self._check_owner(await self._info(model_id))
        elif in_use:
            self._check_owner(await read_info(self._client, in_use))
            # Either that collection is left of an earlier generation, or this object is.
            if self.config.generation:
                await self._confirm()
        others = (
            self.config.model_of(targets.get(self.config.name + role.value, "")) for role in CollectionRole
        )
        return Roles(model_id, *others)

    def _check_owner(self, info: CollectionInfo) -> None:
        if info.config is None or info.config.owner != self.config.owner:
            raise CollectionNotOwned.of(self.config.name)


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
        """Use the model of this role, and make the one in use the previous one, in one step.

        Returns:
            False if no collection has the role; nothing has changed then.
        """
        return await self._rename(role, "", self._create(CollectionRole.PREVIOUS, in_use))

    async def abandon(self, role: CollectionRole) -> bool:
        """Stop writing to the collection of this role; False if there is none."""
        return await self._rename(role, CollectionRole.ABANDONED.value)

    async def drop(self, model_id: str) -> None:
        """Delete a physical collection together with its aliases."""
        physical = self._collections.config.physical(model_id)
        async with translated_errors():
            await self._client.delete_collection(physical)
        self._collections.forget_roles()
        _log.info("dropped collection", extra={"physical": physical})

    async def _rename(self, role: CollectionRole, suffix: str, *more: models.AliasOperations) -> bool:
        alias = self._collections.config.name
        rename = models.RenameAlias(old_alias_name=alias + role.value, new_alias_name=alias + suffix)
        try:
            await self._change_aliases(models.RenameAliasOperation(rename_alias=rename), *more)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return False
        return True

    def _create(self, role: CollectionRole, model_id: str) -> models.CreateAliasOperation:
        config = self._collections.config
        alias = models.CreateAlias(
            collection_name=config.physical(model_id), alias_name=config.name + role.value
        )
        return models.CreateAliasOperation(create_alias=alias)

    async def _change_aliases(self, *operations: models.AliasOperations) -> None:
        async with translated_errors():
            await self._client.update_collection_aliases(list(operations))
        self._collections.forget_roles()
