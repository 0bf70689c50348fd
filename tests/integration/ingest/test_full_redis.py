"""Redis at `maxmemory`: nothing new comes in, and what is queued is worked off all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import IngestState
from tests.integration.ingest.scripted_encoder import REFUSED_TEXT, ScriptedEncoder
from tests.integration.ingest.waiting import eventually
from tests.integration.ingest.worker_process import WorkerProcess
from tests.support.collections import CONFIG, KEYS
from tests.support.redis import RedisServer
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable
from textmatch.index.index import Index
from textmatch.queue import depth
from textmatch.queue.depth import QueueGauges
from textmatch.v1 import matcher_service_pb2 as pb

StartWorker = Callable[..., WorkerProcess]


def documents(count: int) -> list[Document]:
    return [Document(f"d{number}", f"text {number}", version=1) for number in range(count)]


async def settled(state: IngestState) -> bool:
    return (await state.pending.summary()).count == 0


async def test_workers_go_on_when_redis_is_full(
    own_redis_server: RedisServer,
    own_redis: Redis,
    own_state: IngestState,
    index: Index,
    start_worker: StartWorker,
):
    queued = documents(500)
    await own_state.producer.enqueue(CONFIG, queued)
    own_redis_server.fill()
    worker = start_worker(TEXTMATCH_REDIS_URL=own_redis_server.url)
    with pytest.raises(DependencyUnavailable, match="maxmemory"):
        await own_state.producer.enqueue(CONFIG, [Document("late", "text", version=1)])
    await eventually(lambda: settled(own_state), "the queue to be worked off", seconds=60)
    assert len(await index.fetch([one.id for one in queued])) == 500

    async def is_acknowledged() -> bool:
        return await own_redis.hlen(KEYS.unacked) == 0

    await eventually(is_acknowledged, "the acknowledgements", seconds=60)
    assert await own_state.pending.versions(["late"]) == {}
    assert worker.stop() == 0


async def test_held_messages_stay_held_and_come_back_when_redis_is_full(
    own_redis_server: RedisServer,
    own_state: IngestState,
    index: Index,
    encoder: ScriptedEncoder,
    start_worker: StartWorker,
):
    encoder.may_answer.clear()
    killed = start_worker(TEXTMATCH_REDIS_URL=own_redis_server.url)
    await own_state.producer.enqueue(CONFIG, documents(10))

    async def is_held() -> bool:
        return bool(encoder.calls)

    await eventually(is_held, "the call")
    own_redis_server.fill()
    # Longer than the visibility timeout: the lease is renewed.
    await asyncio.sleep(3.0)
    assert len(encoder.calls) == 1
    killed.kill()
    encoder.may_answer.set()
    start_worker(TEXTMATCH_REDIS_URL=own_redis_server.url)
    await eventually(lambda: settled(own_state), "the message of the killed worker", seconds=60)
    assert len(await index.fetch([one.id for one in documents(10)])) == 10


async def test_what_cannot_be_kept_waits_for_room(
    own_redis_server: RedisServer, own_state: IngestState, start_worker: StartWorker
):
    await own_state.producer.enqueue(CONFIG, [Document("bad", REFUSED_TEXT, version=1)])
    own_redis_server.fill()
    worker = start_worker(TEXTMATCH_REDIS_URL=own_redis_server.url)
    retries = 'textmatch_worker_retries_total{reason="DEPENDENCY_UNAVAILABLE"}'

    async def is_retried() -> bool:
        return bool(await asyncio.to_thread(worker.metric, retries))

    await eventually(is_retried, "a retry", seconds=60)
    assert not await settled(own_state)
    own_redis_server.make_room()
    await eventually(lambda: settled(own_state), "the dead letter", seconds=60)
    assert [letter.key for letter in await own_state.dead_letters.entries(10)] == ["bad"]


async def test_callers_are_told_to_come_back(
    own_redis_server: RedisServer, own_state: IngestState, index: Index
):
    handler = DocumentCalls(own_state)
    own_redis_server.fill()

    async def requests() -> AsyncIterator[pb.IngestDocumentsRequest]:
        yield pb.IngestDocumentsRequest(documents=[pb.Document(id="a", text="text")])

    with pytest.raises(DependencyUnavailable, match="maxmemory") as caught:
        await anext(aiter(handler.ingest(requests())))
    assert caught.value.retry_delay_seconds
    with pytest.raises(DependencyUnavailable, match="maxmemory"):
        await handler.delete(pb.DeleteDocumentsRequest(ids=["a"]))
    own_redis_server.make_room()
    response = await anext(aiter(handler.ingest(requests())))
    assert response.results[0].outcome == pb.INGEST_OUTCOME_ACCEPTED


@pytest.mark.parametrize(
    ("policy", "evicts"), [("noeviction", 0.0), ("allkeys-lru", 1.0), ("volatile-ttl", 1.0)]
)
async def test_a_redis_that_may_drop_documents_is_reported(
    own_redis: Redis, policy: str, evicts: float, caplog: pytest.LogCaptureFixture
):
    await own_redis.config_set("maxmemory-policy", policy)
    sampling = QueueGauges(own_redis, KEYS)
    await sampling.sample()
    await sampling.sample()
    assert depth.EVICTS_KEYS._value.get() == evicts
    assert len([record for record in caplog.records if "noeviction" in record.message]) == evicts
