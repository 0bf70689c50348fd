"""A matcher with a real encoder process and a real Qdrant Edge process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.integration.matcher.parts import EncoderProcess, RunningMatcher, fill, running_matcher
from tests.integration.matcher.quick_encoder import QuickEncoder, quick
from tests.support.collections import close_index, make_index
from tests.support.encoder import make_tiny_bi_encoder, make_tiny_cross_encoder
from tests.support.qdrant import QdrantServer
from textmatch.index.index import Index

__all__ = ["quick"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The encoder's environment."""
    directory = tmp_path_factory.mktemp("models")
    return {
        "TEXTMATCH_BI_ENCODER": str(make_tiny_bi_encoder(directory / "bi")),
        "TEXTMATCH_CROSS_ENCODER": str(make_tiny_cross_encoder(directory / "cross")),
    }


@pytest.fixture(scope="session")
def shared_encoder(models: dict[str, str]) -> Iterator[EncoderProcess]:
    encoder = EncoderProcess(models)
    yield encoder
    encoder.kill()


@pytest.fixture
async def encoder(shared_encoder: EncoderProcess) -> EncoderProcess:
    """It runs, even if the previous test stopped it."""
    await asyncio.to_thread(shared_encoder.start)
    return shared_encoder


@pytest.fixture
async def index(own_qdrant: QdrantServer) -> AsyncIterator[Index]:
    connected = make_index(f"http://127.0.0.1:{own_qdrant.port}")
    yield connected
    await close_index(connected)


@pytest.fixture
async def filled(index: Index, encoder: EncoderProcess) -> Index:
    await fill(index, encoder)
    return index


@pytest.fixture
async def matcher(encoder: EncoderProcess, filled: Index) -> AsyncIterator[RunningMatcher]:
    async with running_matcher(encoder, filled) as running:
        yield running


@pytest.fixture
async def served(quick: QuickEncoder, index: Index) -> AsyncIterator[RunningMatcher]:
    """A matcher with an encoder in this process."""
    await fill(index, quick)
    async with running_matcher(quick, index) as running:
        yield running
