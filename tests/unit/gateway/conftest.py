"""The gateway on a free port, in front of real gRPC servers whose answers a test sets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.gateway import serve_gateway
from tests.support.scripted_servicer import RunningServer, encoder, encoder_server, matcher, matcher_server

__all__ = ["encoder", "encoder_server", "matcher", "matcher_server"]


@pytest.fixture
async def gateway_url(matcher_server: RunningServer, encoder_server: RunningServer) -> AsyncIterator[str]:
    async with serve_gateway(matcher_server.address, encoder_server.address) as url:
        yield url


@pytest.fixture
async def http(gateway_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway_url, timeout=30) as client:
        yield client
