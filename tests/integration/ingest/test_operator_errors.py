"""Errors of Qdrant that only an operator can end: nobody is blamed, nothing is lost, the operator is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from qdrant_client import grpc as qdrant
from redis.asyncio import Redis

from services.matcher.documents import DocumentsHandler
from services.matcher.ingest import IngestHandler
from services.matcher.servicer import MAX_REQUEST_BYTES, METHOD_LIMITS, MatcherServicer
from tests.integration.ingest.indexing import IngestState, make_ingest_state
from tests.integration.ingest.waiting import eventually
from tests.integration.ingest.worker_process import WorkerProcess
from tests.support.collections import CONFIG, KEYS, FixedStore, close_index, make_collection, make_index
from tests.support.grpc_proxy import REFUSALS, STRICT_LIMIT, WRONG_KEY, GrpcProxy, Refusal
from textmatch.documents import Document
from textmatch.errors import StoreAccessDenied
from textmatch.index.index import Index
from textmatch.queue.worker_problems import WorkerProblems
from textmatch.runtime.channel import open_aio_channel
from textmatch.runtime.grpc_errors import from_rpc_error
from textmatch.runtime.server import GrpcServer
from textmatch.types import Problem
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc

StartWorker = Callable[..., WorkerProcess]
DOCUMENTS = [Document(f"文档🙂{number}", f"text {number}", version=1) for number in range(32)]


async def enqueue_one_by_one(state: IngestState) -> None:
    for document in DOCUMENTS:
        await state.producer.enqueue(CONFIG, [document])


async def is_settled(state: IngestState) -> bool:
    return (await state.pending.summary()).count == 0


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_pauses_the_worker_and_is_held_against_no_document(
    refusal: Refusal,
    proxy: GrpcProxy,
    state: IngestState,
    redis: Redis,
    index: Index,
    start_worker: StartWorker,
):
    proxy.refusal = refusal
    worker = start_worker(TEXTMATCH_QDRANT_URL=proxy.url)
    await enqueue_one_by_one(state)
    gauge = f'textmatch_worker_operator_needed{{collection="default",reason="{refusal.reason}"}}'

    async def is_reported() -> bool:
        return await asyncio.to_thread(worker.metric, gauge) == 1.0

    async def is_shown() -> bool:
        problems = await WorkerProblems(redis, KEYS).all()
        return [(one.source, one.reason) for one in problems] == [("worker", refusal.reason)]

    await eventually(is_reported, "the metric", seconds=60)
    await eventually(is_shown, "the status", seconds=60)
    assert await asyncio.to_thread(worker.metric, "textmatch_worker_ready") == 0.0
    # Some probes have failed by now. All documents wait, nearly all of them in the queue.
    assert await state.dead_letters.count() == 0
    assert (await state.pending.summary()).count == len(DOCUMENTS)
    proxy.refusal = None
    await eventually(lambda: is_settled(state), "all to be settled", seconds=90)
    assert await state.dead_letters.count() == 0
    assert len(await index.fetch([one.id for one in DOCUMENTS])) == len(DOCUMENTS)

    async def is_over() -> bool:
        return await asyncio.to_thread(worker.metric, gauge) is None

    await eventually(is_over, "the metric")
    assert worker.stop() == 0


async def test_a_limit_of_strict_mode_makes_batches_smaller(
    proxy: GrpcProxy, state: IngestState, index: Index, start_worker: StartWorker
):
    def refuses(method: str, request: bytes) -> Refusal | None:
        if method != "/qdrant.Points/UpdateBatch":
            return None
        operations = qdrant.UpdateBatchPoints.FromString(request).operations
        return STRICT_LIMIT if sum(len(one.upsert.points) for one in operations) > 2 else None

    proxy.refuses = refuses
    start_worker(TEXTMATCH_QDRANT_URL=proxy.url)
    await state.producer.enqueue(CONFIG, DOCUMENTS)
    await eventually(lambda: is_settled(state), "all to be settled", seconds=90)
    assert await state.dead_letters.count() == 0
    assert len(await index.fetch([one.id for one in DOCUMENTS])) == len(DOCUMENTS)


class Door:
    """A matcher behind real gRPC whose Qdrant is the proxy."""

    def __init__(self, stub: pb_grpc.MatcherServiceAsyncStub) -> None:
        self.stub = stub

    async def ingest(self, document_id: str) -> pb.IngestResult:
        async def requests() -> AsyncIterator[pb.IngestDocumentsRequest]:
            yield pb.IngestDocumentsRequest(documents=[pb.Document(id=document_id, text="text")])

        [response] = [one async for one in self.stub.IngestDocuments(requests(), timeout=20)]
        return response.results[0]

    async def error(self) -> Exception:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub.GetDocument(pb.GetDocumentRequest(id="a"), timeout=20)
        return from_rpc_error(caught.value)


@pytest.fixture
async def door(proxy: GrpcProxy, redis: Redis) -> AsyncIterator[Door]:
    index = make_index(proxy.url, redis=redis)
    state = make_ingest_state(redis, index)

    async def problems() -> tuple[Problem, ...]:
        return ()

    servicer = MatcherServicer(
        FixedStore(make_collection(redis, index)),
        None,
        IngestHandler(state.shared),
        DocumentsHandler(state.shared),
        None,
        match_timeout_seconds=10,
        batch_match_concurrency=8,
        problems=problems,
    )
    server = GrpcServer("127.0.0.1", 0, MAX_REQUEST_BYTES, method_limits=METHOD_LIMITS)
    server.add(pb_grpc.add_MatcherServiceServicer_to_server, servicer, "textmatch.v1.MatcherService")
    channel = open_aio_channel(await server.start())
    yield Door(pb_grpc.MatcherServiceStub(channel))
    await channel.close()
    await server.drain(1)
    await close_index(index)


async def test_the_door_says_what_is_wrong_and_still_accepts_documents(
    door: Door, proxy: GrpcProxy, state: IngestState
):
    assert (await door.ingest("a")).outcome == pb.INGEST_OUTCOME_ACCEPTED
    proxy.refusal = WRONG_KEY
    error = await door.error()
    assert isinstance(error, StoreAccessDenied)
    assert "TEXTMATCH_QDRANT_API_KEY: Invalid API key or JWT" in str(error)
    assert error.retry_delay_seconds
    assert (await door.ingest("b")).outcome == pb.INGEST_OUTCOME_ACCEPTED
    assert set(await state.pending.versions(["a", "b"])) == {"a", "b"}
    proxy.refusal = None
