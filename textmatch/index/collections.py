"""The physical collections of one collection: their roles and properties, and changes of roles.

Each bi-encoder has a physical collection of its own. It is named for the collection, the model and the
generation, and referred to by its model id. Redis decides which of them has which role
(textmatch/collection_roles.py). Qdrant has a copy, which follows (textmatch/index/aliases.py).

Readers need no Redis: while it does not answer, they use the roles that they knew last. Writers do.

The settings of the collection are a note of each physical collection, with the installation that owns it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
from qdrant_client import AsyncQdrantClient

from textmatch.collection_config import CollectionConfig
from textmatch.collection_roles import CollectionRole, RoleRecord, Roles
from textmatch.errors import CollectionNotFound, DependencyUnavailable, ModelMismatch
from textmatch.index.aliases import CONFIG_NOTE, Aliases, CollectionInfo, read_info
from textmatch.index.client import CollectionGone, translated_errors
from textmatch.index.schema import (
    HNSW,
    PayloadIndexes,
    dense_vector_params,
    lexical_vector_params,
)
from textmatch.refreshing_cache import RefreshingCache

# How long readers may use outdated roles, and outdated notes such as tuned weights.
_ROLES_CACHE_SECONDS = 2.0
_INFO_CACHE_SECONDS = 10.0
# How long readers wait for Redis.
_REDIS_SECONDS = 0.25

_log = logging.getLogger(__name__)


class Collections:
    """Reads roles and properties through short-lived caches, and creates physical collections.

    Every method raises DependencyUnavailable when Qdrant does not answer.

    Args:
        confirm: raises CollectionNotFound if the collection has been deleted.
        record: where roles are decided.
    """

    def __init__(
        self,
        client: AsyncQdrantClient,
        config: CollectionConfig,
        confirm: Callable[[], Awaitable[None]],
        record: RoleRecord,
    ) -> None:
        self._client = client
        self.config = config
        self._confirm = confirm
        self._record = record
        self._aliases = Aliases(client, config, confirm)
        self._payload_indexes = PayloadIndexes(config.payload_indexes)
        self._roles = RefreshingCache(self._read_or_known, _ROLES_CACHE_SECONDS)
        # The latest roles that this process has seen.
        self._known = Roles()
        self._infos: dict[str, RefreshingCache[CollectionInfo]] = {}

    async def roles(self) -> Roles:
        """The model of each role, at most two seconds old. While Redis does not answer: those known last.

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
        """The model of each role now. Makes Qdrant's copy equal to it. Raises as `roles`.

        Raises:
            DependencyUnavailable: Redis does not answer.
        """
        self.forget_roles()
        roles = await self._compared(await self._record.read())
        if roles.in_use:
            try:
                info = await self._info(roles.in_use)
            except CollectionGone:
                await self.forget_missing(roles, roles.in_use)
                return await self._compared(await self._record.read())
            if info.roles.epoch < roles.epoch:
                await self._follow(roles)
        return roles

    async def change_roles(self, roles: Roles, new: Roles) -> bool:
        """Replace roles that were read; False if they have changed since. Then nothing has changed here.

        Raises:
            CollectionNotFound: the collection has been deleted.
        """
        new = replace(new, epoch=roles.epoch + 1)
        if not await self._record.change(roles.epoch, new):
            return False
        self.forget_roles()
        self._known = new
        _log.info("changed roles", extra={"collection": self.config.name, "roles": new.to_mapping()})
        if new.in_use:
            await self._follow(new)
        return True

    async def forget_missing(self, roles: Roles, model_id: str) -> None:
        """Take its role from a physical collection that is gone, and not only unknown to a node.

        An operator has deleted it, or Qdrant has lost its data.
        """
        suffixes = [role.value for role in CollectionRole if roles.of(role) == model_id] or [""]
        try:
            await self._aliases.point_at(model_id, suffixes[0])
        except CollectionGone:
            self._forget_info(model_id)
            if await self.change_roles(roles, roles.without(model_id)):
                _log.warning("a physical collection is gone", extra={"model_id": model_id})

    def forget_roles(self) -> None:
        """Read the roles again next time."""
        self._roles.forget()

    async def info(self, model_id: str) -> CollectionInfo:
        """The properties of an existing physical collection, at most ten seconds old.

        Raises:
            CollectionGone: there is no such collection.
        """
        try:
            return await self._info(model_id)
        except CollectionGone:
            # The roles have changed since its name was read.
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
        roles = await self.refresh_roles()
        if not roles.in_use:
            await self.create(model_id, dimension)
            if await self.change_roles(roles, replace(roles.without(model_id), in_use=model_id)):
                return
            roles = await self.refresh_roles()
        if roles.in_use != model_id:
            raise ModelMismatch(index_model_id=roles.in_use, encoder_model_id=model_id)

    async def create(self, model_id: str, dimension: int) -> None:
        """Make sure that the physical collection of this model exists. A new one has no role yet.

        Raises:
            CollectionNotFound: the collection has been deleted; nothing is left behind.
        """
        await self._confirm()
        physical = self.config.physical(model_id)
        async with translated_errors():
            # A node may not know of the latest collections and deletions. They agree on this.
            try:
                await self._client.create_collection(
                    physical,
                    vectors_config=dense_vector_params(dimension),
                    sparse_vectors_config=lexical_vector_params() if self.config.lexical else None,
                    hnsw_config=HNSW,
                    metadata={CONFIG_NOTE: self.config.to_mapping()},
                )
                _log.info("created collection", extra={"physical": physical})
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
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

    async def _read_or_known(self) -> Roles:
        """The roles for readers."""
        try:
            async with asyncio.timeout(_REDIS_SECONDS if self._known.in_use else None):
                record = await self._record.read()
        except (DependencyUnavailable, TimeoutError):
            if self._known.in_use:
                return self._known
            shown = await self._aliases.read()
            if not shown.in_use:
                # Qdrant may not have followed yet: this does not prove that nothing is in use.
                raise
            return shown
        return await self._compared(record)

    async def _compared(self, record: Roles) -> Roles:
        """The roles of the record, which is repaired if Redis has lost changes, or made if there is none."""
        while True:
            copy = await self._copy(record)
            is_missing = bool(copy.in_use and not record.in_use)
            ahead = copy if is_missing else max(copy, self._known, key=lambda roles: roles.epoch)
            if ahead.epoch <= record.epoch and not is_missing:
                if record.epoch > self._known.epoch:
                    self._known = record
                return record
            # This fails if the record was changed after it was read.
            if await self._record.change(record.epoch, record.after_loss(ahead)):
                extra = {"collection": self.config.name, "epoch": record.epoch, "ahead": ahead.epoch}
                _log.warning("roles that Redis lacks are taken from Qdrant", extra=extra)
            record = await self._record.read()

    async def _copy(self, record: Roles) -> Roles:
        """The roles that Qdrant has noted, at most ten seconds ago if they are those of the record."""
        if record.in_use:
            try:
                info = await self._info(record.in_use)
                if info.roles.epoch != record.epoch:
                    self._forget_info(record.in_use)
                    info = await self._info(record.in_use)
            except CollectionGone:
                self._forget_info(record.in_use)
            else:
                info.check_owner(self.config)
                return info.roles
        return await self._aliases.read()

    async def _follow(self, roles: Roles) -> None:
        """Make Qdrant's copy equal to the record, or leave that to the next one who reads the roles."""
        with suppress(DependencyUnavailable):
            await self._aliases.follow(roles)
        for model_id in list(self._infos):
            self._forget_info(model_id)


class RoleSwitcher:
    """Changes the roles of physical collections. Each method is one atomic step.

    Every method raises DependencyUnavailable when Redis or Qdrant does not answer, and CollectionNotFound if
    the collection has been deleted.
    """

    def __init__(self, client: AsyncQdrantClient, collections: Collections) -> None:
        self._client = client
        self._collections = collections

    async def start(self, model_id: str, dimension: int) -> None:
        """Make this model's collection the next one. It receives writes from now on. May be repeated.

        An abandoned one gets the role back.
        """
        await self._collections.create(model_id, dimension)
        await self._change(
            lambda roles: (
                roles
                if model_id in (roles.in_use, roles.next)
                else replace(roles.without(model_id), next=model_id)
            )
        )

    async def promote(self, role: CollectionRole, *, in_use: str) -> bool:
        """Use the model of this role, and make the one in use the previous one, in one step.

        Returns:
            False if no collection has the role, or another one is in use; nothing has changed then.
        """

        def promoted(roles: Roles) -> Roles | None:
            if not roles.of(role) or roles.in_use != in_use:
                return None
            return Roles(roles.of(role), previous=in_use, abandoned=roles.abandoned, epoch=roles.epoch)

        return await self._change(promoted)

    async def abandon(self, role: CollectionRole) -> bool:
        """Stop writing to the collection of this role; False if there is none."""

        def abandoned(roles: Roles) -> Roles | None:
            model_id = roles.of(role)
            return replace(roles.without(model_id), abandoned=model_id) if model_id else None

        return await self._change(abandoned)

    async def drop(self, model_id: str) -> None:
        """Delete a physical collection that is not in use. Nothing writes to it any more before that."""
        await self._change(lambda roles: replace(roles.without(model_id), abandoned=model_id))
        physical = self._collections.config.physical(model_id)
        async with translated_errors():
            await self._client.delete_collection(physical)
        await self._change(lambda roles: roles.without(model_id))
        _log.info("dropped collection", extra={"physical": physical})

    async def _change(self, change: Callable[[Roles], Roles | None]) -> bool:
        """Replace the roles by what a function makes of them; False if it makes nothing of them."""
        while True:
            roles = await self._collections.refresh_roles()
            new = change(roles)
            if new is None or new == roles:
                return new is not None
            if await self._collections.change_roles(roles, new):
                return True
