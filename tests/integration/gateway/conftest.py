"""The gateway before a real encoder with tiny models, and before a real matcher with a worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.encoder.model_registry import ModelRegistry
from tests.integration.collections.conftest import alpha, encoder, installations
from tests.integration.collections.installation import Installation
from tests.integration.encoder.conftest import model_directories, models
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.support.encoder_server import serve_encoder
from tests.support.gateway import serve_gateway
from tests.support.redis import own_redis_server, redis_client, redis_server, shared_redis_server

__all__ = [
    "alpha",
    "encoder",
    "installations",
    "model_directories",
    "models",
    "own_redis_server",
    "redis_client",
    "redis_server",
    "shared_redis_server",
]


@pytest.fixture
async def encoder_gateway(models: ModelRegistry, model_directories: dict[str, Path]) -> AsyncIterator[str]:
    """The URL of a gateway before a real encoder, without a matcher."""
    aliases = {name: str(directory) for name, directory in model_directories.items()}
    aliases |= {"text-embedding-3-small": "", "rerank-v3.5": "", "rerank-english-v3.0": ""}
    async with (
        serve_encoder(models) as server,
        serve_gateway("127.0.0.1:1", server.address, aliases=aliases) as url,
    ):
        yield url


@pytest.fixture
async def http(alpha: Installation, encoder: ScriptedEncoder) -> AsyncIterator[httpx.AsyncClient]:
    """Calls a gateway before the installation."""
    async with (
        serve_gateway(alpha.address, encoder.target) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        yield client
