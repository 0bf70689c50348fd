"""The copy of a collection's roles in Qdrant.

Aliases show outsiders the roles:

    NAME               in use
    NAME--next         being built
    NAME--previous     was in use; kept for a rollback
    NAME--abandoned    was next or previous, but could no longer be written

The whole record with its epoch is a note of each physical collection that has a role. The note of the one in
use is written last: it says that everything else has been written.

Nodes of a cluster learn of aliases and notes one after the other. What is read here may be some seconds old,
and decides nothing, with two exceptions: a collection without a record in Redis has the roles that Qdrant
shows, and a copy that is ahead of the record proves that Redis has lost some changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qdrant_client import AsyncQdrantClient, models

from textmatch.collection_config import CollectionConfig
from textmatch.collection_roles import CollectionRole, Roles
from textmatch.errors import CollectionNotOwned, InvalidInput
from textmatch.index.client import translated_errors
from textmatch.index.schema import LEXICAL_VECTOR

# The note with the settings, and the one with the roles.
CONFIG_NOTE = "collection"
_ROLES_NOTE = "roles"


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

    @property
    def roles(self) -> Roles:
        """The copy of the roles that it has; none, with epoch 0, if it has none."""
        return Roles.from_mapping(self.notes.get(_ROLES_NOTE))

    def check_owner(self, config: CollectionConfig) -> None:
        """Check that it belongs to the installation of a collection.

        Raises:
            CollectionNotOwned: another installation has made it, or taken it over.
        """
        if self.config is None or self.config.owner != config.owner:
            raise CollectionNotOwned.of(config.name)


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


class Aliases:
    """Every method raises DependencyUnavailable when Qdrant does not answer.

    Args:
        confirm: raises CollectionNotFound if the collection has been deleted.
    """

    def __init__(
        self, client: AsyncQdrantClient, config: CollectionConfig, confirm: Callable[[], Awaitable[None]]
    ) -> None:
        self._client = client
        self._config = config
        self._confirm = confirm

    async def read(self) -> Roles:
        """The roles that Qdrant shows; none if the alias in use is missing. Their epoch is 0 without a note.

        Raises:
            CollectionNotOwned: the alias in use points at a collection of another installation.
            CollectionNotFound: the collection was deleted and created again.
        """
        async with translated_errors():
            response = await self._client.get_aliases()
        targets = {entry.alias_name: entry.collection_name for entry in response.aliases}
        in_use = targets.get(self._config.name, "")
        if not in_use:
            return Roles()
        info = await read_info(self._client, in_use)
        info.check_owner(self._config)
        model_id = self._config.model_of(in_use)
        if not model_id:
            # Either that collection is left of an earlier generation, or this object is.
            if self._config.generation:
                await self._confirm()
            return Roles()
        if info.roles.in_use == model_id:
            return info.roles
        others = {
            role: self._config.model_of(targets.get(self._config.name + role.value, ""))
            for role in CollectionRole
        }
        return Roles(
            in_use=model_id,
            next=others[CollectionRole.NEXT],
            previous=others[CollectionRole.PREVIOUS],
            abandoned=others[CollectionRole.ABANDONED],
        )

    async def follow(self, roles: Roles) -> None:
        """Make the copy equal to the record.

        Raises:
            CollectionGone: this node does not know a physical collection that has a role.
            CollectionNotOwned, CollectionNotFound: as `read`.
        """
        await self.read()
        in_use = self._config.physical(roles.in_use)
        models_by_suffix = {"": roles.in_use, **{role.value: roles.of(role) for role in CollectionRole}}
        changes: list[models.AliasOperations] = []
        for suffix, model_id in models_by_suffix.items():
            alias = models.DeleteAlias(alias_name=self._config.name + suffix)
            changes.append(models.DeleteAliasOperation(delete_alias=alias))
            if model_id:
                changes.append(self._creation(suffix, model_id))
        async with translated_errors(in_use):
            await self._client.update_collection_aliases(changes)
        notes = {_ROLES_NOTE: roles.to_mapping()}
        for model_id in (roles.abandoned, roles.previous, roles.next, roles.in_use):
            if model_id:
                physical = self._config.physical(model_id)
                async with translated_errors(physical):
                    await self._client.update_collection(physical, metadata=notes)

    async def point_at(self, model_id: str, suffix: str) -> None:
        """Point an alias at a physical collection.

        All nodes agree on changes of aliases, also a node that has not heard of the collection yet.

        Raises:
            CollectionGone: there is no such collection.
        """
        async with translated_errors(self._config.physical(model_id)):
            await self._client.update_collection_aliases([self._creation(suffix, model_id)])

    def _creation(self, suffix: str, model_id: str) -> models.CreateAliasOperation:
        alias = models.CreateAlias(
            collection_name=self._config.physical(model_id), alias_name=self._config.name + suffix
        )
        return models.CreateAliasOperation(create_alias=alias)
