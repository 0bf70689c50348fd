"""A Qdrant whose answers stop, as when a network drops its packets: who is away is remembered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import IngestState, make_ingest_state
from tests.integration.ingest.waiting import eventually
from tests.support.collections import client_of, close_index, make_index
from tests.support.grpc_proxy import GrpcProxy
from textmatch.errors import DependencyUnavailable
from textmatch.index.client import Qdrant
from textmatch.index.index import Index
from textmatch.v1 import matcher_service_pb2 as pb


@pytest.fixture
async def far_index(proxy: GrpcProxy, redis: Redis) -> AsyncIterator[Index]:
    index = make_index(proxy.url, redis=redis)
    await index.refresh_model_in_use()
    yield index
    await close_index(index)


@pytest.fixture
def far_state(redis: Redis, far_index: Index) -> IngestState:
    return make_ingest_state(redis, far_index)


async def ingest(handler: DocumentCalls, document_id: str) -> None:
    async def requests() -> AsyncIterator[pb.IngestDocumentsRequest]:
        yield pb.IngestDocumentsRequest(documents=[pb.Document(id=document_id, text="text")])

    response = await anext(aiter(handler.ingest(requests())))
    assert response.results[0].outcome == pb.INGEST_OUTCOME_ACCEPTED


async def test_documents_are_accepted_in_milliseconds_while_qdrant_is_silent(
    proxy: GrpcProxy, far_state: IngestState, far_index: Index
):
    handler = DocumentCalls(far_state)
    await ingest(handler, "before")
    proxy.answers.clear()
    started = time.monotonic()
    for number in range(20):
        await ingest(handler, f"d{number}")
    # Some calls wait a second for the look-up, until it is known that Qdrant is away.
    assert time.monotonic() - started < 9.0
    quick = time.monotonic()
    for number in range(20, 40):
        await ingest(handler, f"d{number}")
    assert time.monotonic() - quick < 2.0
    assert (await far_state.pending.summary()).count == 41


async def test_reads_fail_at_once_with_an_honest_delay_and_go_on_after_healing(
    proxy: GrpcProxy, far_index: Index
):
    await far_index.collections.prepare("model-1", 8)
    # From now on the roles are known.
    assert await far_index.count() == 0
    client = client_of(far_index)
    assert isinstance(client, Qdrant)
    proxy.answers.clear()
    reading = asyncio.create_task(far_index.count())

    async def is_remembered() -> bool:
        return client.guard.error is not None

    await eventually(is_remembered, "the guard", seconds=10)
    started = time.monotonic()
    with pytest.raises(DependencyUnavailable, match="Qdrant does not answer") as caught:
        await far_index.count()
    assert time.monotonic() - started < 0.2
    assert caught.value.retry_delay_seconds is not None
    assert caught.value.retry_delay_seconds <= 2.0
    proxy.answers.set()
    healed = time.monotonic()

    async def is_over() -> bool:
        return client.guard.error is None

    await eventually(is_over, "the guard")
    assert time.monotonic() - healed < 4.0
    # Calls that were running have their answers.
    assert await reading == 0
    assert await far_index.count() == 0
