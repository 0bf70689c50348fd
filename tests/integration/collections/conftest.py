"""Installations that share a real Redis, a real Qdrant Edge and a scripted encoder with two models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.integration.collections.installation import Installation
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.support.collections import empty_qdrant
from tests.support.redis import RedisServer, redis_client, redis_server, shared_redis_server

__all__ = ["redis_client", "redis_server", "shared_redis_server"]

FIRST_MODEL = "first-0123456789ab"
SECOND_MODEL = "second-0123456789ab"

Install = Callable[..., "AsyncIterator[Installation]"]


@pytest.fixture
def encoder() -> Iterator[ScriptedEncoder]:
    scripted = ScriptedEncoder(FIRST_MODEL)
    scripted.other_model_ids = (SECOND_MODEL,)
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture
async def installations(
    redis_server: RedisServer, qdrant_url: str, encoder: ScriptedEncoder
) -> AsyncIterator[Callable[..., Installation]]:
    """Opens installations by name, on an empty Redis and an empty Qdrant."""
    await empty_qdrant(qdrant_url)
    async with AsyncExitStack() as stack:

        async def install(name: str = "alpha", keys_file: Path | None = None) -> Installation:
            made = Installation(name, redis_server.url, qdrant_url, encoder.target, keys_file)
            return await stack.enter_async_context(made)

        yield install


@pytest.fixture
async def alpha(installations: Callable[..., Installation]) -> Installation:
    return await installations("alpha")


@pytest.fixture
async def beta(installations: Callable[..., Installation]) -> Installation:
    return await installations("beta")
