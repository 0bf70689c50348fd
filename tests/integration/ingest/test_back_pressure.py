"""A full queue: callers are held, let in again in their turn, or told in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from services.matcher.ingest import Admission, IngestHandler
from services.matcher.servicer import MAX_REQUEST_BYTES, METHOD_LIMITS, MatcherServicer
from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import UNLIMITED, make_ingest_state
from tests.support.collections import KEYS, STATE, FixedStore, register
from tests.support.queue import take_queued
from tests.support.redis import RedisServer
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable, Overloaded
from textmatch.filters import FieldMatch, Filter
from textmatch.index.index import Index
from textmatch.queue.app import make_app
from textmatch.queue.dead_letters import of_document
from textmatch.queue.depth import QueueDepth
from textmatch.queue.messages import TASK_NAME
from textmatch.queue.pending import Pending
from textmatch.queue.redis_client import connect
from textmatch.queue.tombstones import Tombstones
from textmatch.runtime.grpc_errors import from_rpc_error
from textmatch.runtime.server import GrpcServer
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1.matcher_service_pb2_grpc import MatcherServiceStub, add_MatcherServiceServicer_to_server

LIMITS = replace(UNLIMITED, documents=10)


def request_of(*ids: str, text: str = "text") -> pb.IngestDocumentsRequest:
    return pb.IngestDocumentsRequest(documents=[pb.Document(id=one, text=text) for one in ids])


async def stream(*requests: pb.IngestDocumentsRequest) -> AsyncIterator[pb.IngestDocumentsRequest]:
    for request in requests:
        yield request


async def ingest(
    handler: DocumentCalls, request: pb.IngestDocumentsRequest, timeout_seconds: float | None = None
) -> list[pb.IngestDocumentsResponse]:
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    return [response async for response in handler.ingest(stream(request), deadline)]


async def work_off(redis: Redis) -> None:
    """What a worker does to the queue, as far as its size is concerned."""
    taken = await take_queued(redis)
    await Pending(redis, STATE).clear({document.id: document.version for document in taken})


@pytest.fixture
def matchers(index: Index, redis: Redis) -> tuple[DocumentCalls, DocumentCalls]:
    """Two that share the queue."""
    first, second = (DocumentCalls(make_ingest_state(redis, index, LIMITS)) for _ in range(2))
    return first, second


async def test_callers_of_all_matchers_are_held_until_there_is_room(
    matchers: tuple[DocumentCalls, DocumentCalls], redis: Redis
):
    await ingest(matchers[0], request_of(*(f"d{number}" for number in range(10))))
    held = [
        asyncio.create_task(ingest(matcher, request_of(f"{position}-{number}")))
        for position, matcher in enumerate(matchers)
        for number in range(3)
    ]
    held_before = REGISTRY.get_sample_value("textmatch_ingest_held_seconds_count") or 0.0
    await asyncio.sleep(0.5)
    assert not any(one.done() for one in held)
    assert (await Pending(redis, STATE).summary()).count == 10
    await work_off(redis)
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*held)
    assert {result.outcome for [answer] in answers for result in answer.results} == {
        pb.INGEST_OUTCOME_ACCEPTED
    }
    assert (await Pending(redis, STATE).summary()).count == 6
    assert REGISTRY.get_sample_value("textmatch_ingest_held_seconds_count") == held_before + 6


async def test_the_limit_is_passed_by_one_request_at_most(index: Index, redis: Redis):
    matcher = DocumentCalls(make_ingest_state(redis, index, LIMITS))
    held = [
        asyncio.create_task(ingest(matcher, request_of(*(f"{number}-{i}" for i in range(4)))))
        for number in range(20)
    ]
    await asyncio.sleep(0.5)
    assert sum(one.done() for one in held) == 3
    while not all(one.done() for one in held):
        assert (await Pending(redis, STATE).summary()).count <= 12
        await work_off(redis)
        await asyncio.sleep(0.05)
    await asyncio.gather(*held)


async def test_a_caller_is_told_before_its_deadline(
    matchers: tuple[DocumentCalls, DocumentCalls],
):
    await ingest(matchers[0], request_of(*(f"d{number}" for number in range(10))))
    started = time.monotonic()
    with pytest.raises(Overloaded, match="the ingest queue is full; its limit is 10 documents") as caught:
        await ingest(matchers[0], request_of("late"), timeout_seconds=1.0)
    assert 0.5 < time.monotonic() - started < 1.0
    assert caught.value.retry_delay_seconds


async def test_what_is_stored_already_needs_no_room(
    matchers: tuple[DocumentCalls, DocumentCalls], redis: Redis
):
    await ingest(matchers[0], request_of(*(f"d{number}" for number in range(10))))
    [answer] = await ingest(matchers[0], request_of("rejected", text=""), timeout_seconds=5.0)
    assert answer.results[0].outcome == pb.INGEST_OUTCOME_REJECTED


async def test_bytes_and_messages_of_other_producers_count(redis_server: RedisServer, redis: Redis):
    backlog = QueueDepth(redis, KEYS)
    assert (await backlog.measure()).size_bytes == 0
    with make_app(redis_server.url, KEYS) as app:
        for _ in range(20):
            app.send_task(TASK_NAME, args=["x" * 100_000])
    size = await backlog.measure()
    assert size.documents == 20
    # Celery's base64 makes four bytes of three.
    assert 20 * 133_000 < size.size_bytes < 20 * 180_000
    admission = Admission(backlog, replace(UNLIMITED, documents=100, size_bytes=1_000_000))
    with pytest.raises(Overloaded):
        async with admission.entry([], time.monotonic() + 0.2):
            pass
    await redis.delete(KEYS.queue)
    async with admission.entry([], time.monotonic() + 5.0):
        pass


async def test_small_messages_are_measured_well(redis: Redis):
    message = "x" * 500
    for _ in range(100):
        await redis.lpush(KEYS.queue, *[message] * 1_000)
    size_bytes = (await QueueDepth(redis, KEYS).measure()).size_bytes
    assert 100_000 * 500 < size_bytes < 100_000 * 500 * 1.2


async def test_a_held_caller_learns_that_redis_is_gone(own_redis_server: RedisServer, index: Index):
    redis = connect(own_redis_server.url)
    await register(redis)
    matcher = DocumentCalls(make_ingest_state(redis, index, replace(UNLIMITED, documents=1)))
    await ingest(matcher, request_of("a"))
    held = asyncio.create_task(ingest(matcher, request_of("b")))
    await asyncio.sleep(0.3)
    own_redis_server.kill()
    with pytest.raises(DependencyUnavailable, match="Redis"):
        await held
    own_redis_server.start()
    await redis.aclose()


async def test_a_stream_is_slowed_by_flow_control(
    index: Index, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    """Over real gRPC: a client that sends without end gets no further than the buffers on the way."""
    # Held for 3 s; 27 s are left for the answer, on a machine that is busy with other tests.
    monkeypatch.setattr("services.matcher.ingest._MARGIN_SECONDS", 27.0)
    monkeypatch.setattr("services.matcher.ingest._MARGIN_SHARE", 0.9)
    state = make_ingest_state(redis, index, replace(UNLIMITED, documents=1))
    handler = IngestHandler(state.shared)
    server = GrpcServer("127.0.0.1", 0, MAX_REQUEST_BYTES, method_limits=METHOD_LIMITS)
    untouched: Any = None
    store: Any = FixedStore(state.collection)
    servicer = MatcherServicer(
        store, untouched, handler, untouched, untouched, match_timeout_seconds=1.0, batch_match_concurrency=1
    )
    server.add(add_MatcherServiceServicer_to_server, servicer, "textmatch.v1.MatcherService")
    address = await server.start()
    sent = 0

    def endless() -> Iterator[pb.IngestDocumentsRequest]:
        nonlocal sent
        while sent < 2_000:
            yield request_of(*(f"{sent}-{number}" for number in range(100)), text="x" * 1_000)
            sent += 1

    def refused() -> grpc.RpcError:
        # Not grpc.aio: there, a call that is refused while it still writes requests may end as INTERNAL.
        with grpc.insecure_channel(address) as channel:
            call = MatcherServiceStub(channel).IngestDocuments(endless(), timeout=30.0)
            assert len(next(call).results) == 100
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
        return caught.value

    try:
        refusal = from_rpc_error(await asyncio.to_thread(refused))
    finally:
        await server.drain(0.0)
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_delay_seconds
    # 2,000 requests of 100 KB are 200 MB; windows and buffers on the way held 6 to 8 MB, and more elsewhere.
    assert sent < 500


async def test_full_dead_letters_refuse_documents_until_an_operator_acts(index: Index, redis: Redis):
    state = make_ingest_state(redis, index, replace(UNLIMITED, dead_letter_bytes=100_000))
    matcher = DocumentCalls(state)
    letters = [of_document(Document(f"d{number}", "x" * 1_000, version=1), "A", "e") for number in range(200)]
    await state.dead_letters.add(letters)
    with pytest.raises(Overloaded, match="dead letters are full.*100,000") as refused:
        await ingest(matcher, request_of("a"), timeout_seconds=30.0)
    assert refused.value.retry_delay_seconds
    assert await redis.llen(KEYS.queue) == 0
    await state.dead_letters.drop([letter.key for letter in letters])
    await asyncio.sleep(1.1)
    await ingest(matcher, request_of("a"))


@pytest.mark.parametrize("by_filter", [False, True])
async def test_too_many_tombstones_refuse_deletes_and_not_documents(
    index: Index, redis: Redis, by_filter: bool
):
    state = make_ingest_state(redis, index, replace(UNLIMITED, tombstone_bytes=100_000))
    matcher = DocumentCalls(state)
    exists = pb.Filter(must=[pb.Condition(exists=pb.FieldExists(field="colour"))])
    request = pb.DeleteDocumentsRequest(**({"filter": exists} if by_filter else {"ids": ["a"]}))
    await matcher.delete(request)
    if by_filter:
        for number in range(500):
            condition = Filter(must=(FieldMatch("n", (number,)),))
            await state.tombstones.filters.delete(condition, None, ttl_seconds=60)
    else:
        await state.tombstones.add({f"document {number}": 1 for number in range(2_000)}, 60)
    await asyncio.sleep(1.1)
    with pytest.raises(Overloaded, match="too many deletes.*100,000") as refused:
        await matcher.delete(request)
    assert refused.value.retry_delay_seconds
    await ingest(matcher, request_of("a"))


async def test_a_tombstone_takes_little_memory(redis: Redis):
    """173 bytes when each was a key of its own."""
    tombstones = Tombstones(redis, STATE)
    for start in range(0, 20_000, 1_000):
        await tombstones.add({f"document-{number}": 2**50 for number in range(start, start + 1_000)}, 60)
    kept = await QueueDepth(redis, KEYS).measure_kept()
    assert kept.tombstone_bytes == 0, "no collection is registered"
    await register(redis)
    kept = await QueueDepth(redis, KEYS).measure_kept()
    assert 20_000 * 50 < kept.tombstone_bytes < 20_000 * 140
