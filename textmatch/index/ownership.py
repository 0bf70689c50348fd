"""Which installation made the physical collections of a name in Qdrant, and changes of that.

Several installations may share a Qdrant. The note of a physical collection names its owner. Its generation
tells the creations of one name apart.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from qdrant_client import AsyncQdrantClient

from textmatch.collection_config import SEPARATOR, CollectionConfig
from textmatch.errors import CollectionNotFound
from textmatch.index.aliases import CONFIG_NOTE, read_info
from textmatch.index.client import CollectionGone, translated_errors

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhysicalCollection:
    """A collection in Qdrant.

    Attributes:
        config: the settings with which it was made; None if it was not made by textmatch.
        is_in_use: the alias of that name points at it.
    """

    name: str
    config: CollectionConfig | None
    is_in_use: bool


class PhysicalCollections:
    """Every method raises DependencyUnavailable when Qdrant does not answer."""

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client = client

    async def of_name(self, name: str) -> list[PhysicalCollection]:
        """All physical collections of a collection's name, of any installation and generation."""
        async with translated_errors():
            aliases = (await self._client.get_aliases()).aliases
            names = [one.name for one in (await self._client.get_collections()).collections]
        in_use = {one.collection_name for one in aliases if one.alias_name == name}
        # A collection that has the name itself keeps the alias from being made.
        in_use |= {name} & set(names)
        wanted = [one for one in names if one in in_use or one.startswith(f"{name}{SEPARATOR}")]
        found: list[PhysicalCollection] = []
        for physical in wanted:
            try:
                info = await read_info(self._client, physical)
            except CollectionGone:
                continue
            found.append(PhysicalCollection(physical, info.config, physical in in_use))
        return found

    async def drop(self, physical: PhysicalCollection) -> None:
        """Delete it with its aliases."""
        async with translated_errors():
            await self._client.delete_collection(physical.name)
        _log.info("dropped collection", extra={"physical": physical.name})

    async def in_use(self, name: str) -> CollectionConfig:
        """The settings of the collection in use under a name.

        Raises:
            CollectionNotFound: no collection of textmatch is.
        """
        for physical in await self.of_name(name):
            if physical.is_in_use and physical.config is not None:
                return physical.config
        raise CollectionNotFound(name)

    async def adopt(self, config: CollectionConfig, owner: str) -> CollectionConfig:
        """Make an installation the owner of a collection; returns its new settings.

        The installation that made it loses access within ten seconds.
        """
        adopted = replace(config, owner=owner)
        notes = {CONFIG_NOTE: adopted.to_mapping()}
        for physical in await self.of_name(config.name):
            if physical.config is not None and physical.config.generation == config.generation:
                async with translated_errors(physical.name):
                    await self._client.update_collection(physical.name, metadata=notes)
        return adopted
