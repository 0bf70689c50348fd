"""Fixtures: a real server whose answers a test sets. Each test runs with both clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.loop_client import LoopClient
from tests.support.scripted_servicer import RunningServer, encoder, encoder_server, matcher, matcher_server
from textmatch.client import TextMatchClient

__all__ = ["encoder", "encoder_server", "matcher", "matcher_server"]


@pytest.fixture(params=[TextMatchClient, LoopClient], ids=["sync", "asyncio"])
def client_class(request: pytest.FixtureRequest) -> type[TextMatchClient]:
    """Either client; the asyncio one is called as the synchronous one."""
    chosen: type[TextMatchClient] = request.param
    return chosen


@pytest.fixture
def client(
    client_class: type[TextMatchClient], matcher_server: RunningServer, encoder_server: RunningServer
) -> Iterator[TextMatchClient]:
    with client_class(matcher_server.address, encoder_server.address) as client:
        yield client
