"""Encoders behind a proxy, and slow ones: no text pays for either."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.ingest.waiting import eventually
from tests.support.grpc_proxy import NO_UPSTREAM, GrpcProxy
from textmatch.documents import Document
from textmatch.encoder_client import EncoderClient
from workers import retrying_indexer
from workers.indexer import IndexerDependencies
from workers.retrying_indexer import AcceptedDocument, RetryingIndexer

SECONDS_PER_TEXT = 0.02


@pytest.fixture
def indexer(monkeypatch: pytest.MonkeyPatch) -> RetryingIndexer:
    monkeypatch.setattr(retrying_indexer, "delay_seconds", lambda error, attempt: 0.02)
    return RetryingIndexer(budget_seconds=60.0)


@pytest.fixture
async def proxy(encoder: ScriptedEncoder) -> AsyncIterator[GrpcProxy]:
    proxy = GrpcProxy(int(encoder.target.rpartition(":")[2]))
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def behind_proxy(deps: IndexerDependencies, proxy: GrpcProxy) -> AsyncIterator[IndexerDependencies]:
    client = EncoderClient(proxy.url.removeprefix("http://"), detect_crashes=True)
    yield replace(deps, encoder=client)
    await client.close()


def accepted(count: int, first: int = 0) -> list[AcceptedDocument]:
    return [
        AcceptedDocument(Document(f"文档🙂{number}", f"text {number}", version=1), time.time())
        for number in range(first, first + count)
    ]


async def test_a_proxy_without_an_encoder_is_held_against_no_text(
    indexer: RetryingIndexer, behind_proxy: IndexerDependencies, proxy: GrpcProxy
):
    proxy.refusal = NO_UPSTREAM
    settling = asyncio.create_task(indexer.settle(accepted(32), behind_proxy))

    async def was_refused_often() -> bool:
        return len(proxy.calls) > 60

    await eventually(was_refused_often, "refusals", seconds=120)
    assert not settling.done()
    assert await behind_proxy.collection.dead_letters.count() == 0
    proxy.refusal = None
    await settling
    assert await behind_proxy.collection.dead_letters.count() == 0
    assert await behind_proxy.collection.index.count() == 32


async def test_a_proxy_that_fails_every_other_call_is_held_against_no_text(
    indexer: RetryingIndexer, behind_proxy: IndexerDependencies, proxy: GrpcProxy
):
    dice = random.Random(7)
    # gRPC itself tries such calls again.
    proxy.refuses = lambda method, request: NO_UPSTREAM if dice.random() < 0.5 else None
    for number in range(4):
        await indexer.settle(accepted(8, first=8 * number), behind_proxy)
    assert await behind_proxy.collection.dead_letters.count() == 0
    assert await behind_proxy.collection.index.count() == 32


async def test_a_slow_encoder_gets_smaller_batches_and_the_size_is_remembered(
    indexer: RetryingIndexer, deps: IndexerDependencies, encoder: ScriptedEncoder
):
    def embed_slowly(texts: Sequence[str]) -> None:
        time.sleep(SECONDS_PER_TEXT * len(texts))

    encoder.check = embed_slowly
    slow = replace(deps, encode_timeout_seconds=40 * SECONDS_PER_TEXT)
    await indexer.settle(accepted(128), slow)
    assert await deps.collection.dead_letters.count() == 0
    assert await deps.collection.index.count() == 128
    encoder.calls.clear()
    await indexer.settle(accepted(64, first=128), slow)
    assert await deps.collection.index.count() == 192
    assert max(len(call) for call in encoder.calls) < 64
    assert sum(len(call) for call in encoder.calls) == 64
