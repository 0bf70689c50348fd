"""Which collection is in use: one for each bi-encoder, and an alias that points at one of them."""

from __future__ import annotations

import logging
import time

import grpc
from qdrant_client import AsyncQdrantClient, models

from textmatch.errors import ModelMismatch
from textmatch.index.connection import translated_errors
from textmatch.index.schema import dense_vector_params

_log = logging.getLogger(__name__)

# How long a switch of the alias may go unnoticed by readers.
_ALIAS_CACHE_SECONDS = 2.0


class Collections:
    """Resolves the alias, and creates the first collection."""

    def __init__(self, client: AsyncQdrantClient, alias: str) -> None:
        self._client = client
        self._alias = alias
        self._current = ""
        self._resolved_at = float("-inf")

    async def current(self) -> str:
        """The collection that the alias points at, which is a model id; "" while there is none."""
        age_seconds = time.monotonic() - self._resolved_at
        if self._current and age_seconds < _ALIAS_CACHE_SECONDS:
            return self._current
        return await self.refresh()

    async def refresh(self) -> str:
        """The same, asking Qdrant."""
        async with translated_errors():
            response = await self._client.get_aliases()
        targets = [entry.collection_name for entry in response.aliases if entry.alias_name == self._alias]
        self._current = targets[0] if targets else ""
        self._resolved_at = time.monotonic()
        return self._current

    def forget(self) -> None:
        """Ask Qdrant the next time."""
        self._resolved_at = float("-inf")

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
        await self._create(model_id, dimension)
        if (current := await self.refresh()) != model_id:
            raise ModelMismatch(index_model_id=current, encoder_model_id=model_id)

    async def _create(self, model_id: str, dimension: int) -> None:
        async with translated_errors():
            if not await self._client.collection_exists(model_id):
                try:
                    await self._client.create_collection(
                        model_id, vectors_config=dense_vector_params(dimension)
                    )
                except grpc.aio.AioRpcError as error:
                    # Another worker was quicker.
                    if error.code() not in {grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT}:
                        raise
            alias = models.CreateAlias(collection_name=model_id, alias_name=self._alias)
            await self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
        _log.info("created collection", extra={"collection": model_id, "alias": self._alias})
