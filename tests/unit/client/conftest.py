from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.client.scripted_servicer import RunningServer, ScriptedEncoder, ScriptedMatcher
from textmatch.client import TextMatchClient


@pytest.fixture
def matcher() -> ScriptedMatcher:
    return ScriptedMatcher()


@pytest.fixture
def encoder() -> ScriptedEncoder:
    return ScriptedEncoder()


@pytest.fixture
def matcher_server(matcher: ScriptedMatcher) -> Iterator[RunningServer]:
    server = RunningServer.of_matcher(matcher)
    yield server
    server.stop()


@pytest.fixture
def encoder_server(encoder: ScriptedEncoder) -> Iterator[RunningServer]:
    server = RunningServer.of_encoder(encoder)
    yield server
    server.stop()


@pytest.fixture
def client(matcher_server: RunningServer, encoder_server: RunningServer) -> Iterator[TextMatchClient]:
    with TextMatchClient(matcher_server.address, encoder_server.address) as client:
        yield client
