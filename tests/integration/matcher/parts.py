"""What a matcher works with, as real processes that a test stops, kills and starts again."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from services.matcher.duplicates import DuplicateFinder
from services.matcher.matching import Matcher
from services.matcher.reranker import Reranker
from services.matcher.retriever import Retriever
from services.matcher.servicer import MAX_REQUEST_BYTES, METHOD_LIMITS, MatcherServicer
from tests.integration.ingest.waiting import eventually
from tests.support.collections import CONFIG, FixedStore
from tests.support.encoder import spawn_encoder, wait_until_serving
from tests.support.redis import free_port
from textmatch.collection_store import Collection
from textmatch.documents import Document
from textmatch.encoder_client import EncoderClient
from textmatch.errors import TextMatchError
from textmatch.index.index import Index
from textmatch.runtime.channel import open_aio_channel
from textmatch.runtime.grpc_errors import from_rpc_error
from textmatch.runtime.server import GrpcServer
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc

# What a busy machine may take to hand an answer over.
SLACK_SECONDS = 2.0
DOCUMENTS = [
    Document(f"d{number}", f"the cat number {number} sits on the mat", version=1) for number in range(50)
]


class HasTarget(Protocol):
    """An encoder with an address."""

    target: str


class EncoderProcess:
    """`python -m services.encoder`, always on the same port."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        port = free_port()
        self.target = f"127.0.0.1:{port}"
        self._environment = {**environment, "TEXTMATCH_ENCODER_PORT": str(port)}
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, unless it runs, and wait until it is SERVING."""
        if self._process is None:
            self._process = spawn_encoder(self._environment, stderr=subprocess.DEVNULL)
        wait_until_serving(self._process, self.target)

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def stopped(pid: int, seconds: float) -> Iterator[None]:
    """SIGSTOP, and SIGCONT after so many seconds."""
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGCONT))
    timer.start()
    try:
        yield
    finally:
        timer.join()


@dataclass(frozen=True)
class Outcome:
    """What came of one Match: an answer or an error, and how long it took."""

    result: pb.MatchResponse | TextMatchError
    seconds: float

    @property
    def answer(self) -> pb.MatchResponse:
        assert isinstance(self.result, pb.MatchResponse), repr(self.result)
        return self.result

    @property
    def error(self) -> TextMatchError:
        assert isinstance(self.result, TextMatchError), self.result
        return self.result

    @property
    def ids(self) -> list[str]:
        return [match.document.id for match in self.answer.matches]

    @property
    def is_whole(self) -> bool:
        return isinstance(self.result, pb.MatchResponse) and not self.result.degraded


class RunningMatcher:
    """The matcher's own code behind real gRPC."""

    def __init__(self, stub: pb_grpc.MatcherServiceAsyncStub) -> None:
        self.stub = stub

    async def match(self, query: str, timeout_seconds: float, **options: Any) -> Outcome:
        """Match a text. By default, pairs are always scored."""
        options = {"rerank": pb.RERANK_MODE_CROSS_ENCODER, **options}
        return await self.ask(pb.MatchRequest(query=query, options=options), timeout_seconds)

    async def ask(self, request: pb.MatchRequest, timeout_seconds: float = 20.0) -> Outcome:
        """Match, and see that the answer or the error came in time."""
        started = time.monotonic()
        result: pb.MatchResponse | TextMatchError
        try:
            result = await self.stub.Match(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            result = from_rpc_error(error)
        took_seconds = time.monotonic() - started
        assert took_seconds < timeout_seconds + SLACK_SECONDS
        return Outcome(result, took_seconds)

    async def until_whole(self) -> None:
        """Ask until an answer is complete."""

        async def is_whole() -> bool:
            return (await self.match("is it back?", 5.0)).is_whole

        await eventually(is_whole, "a whole answer", seconds=60)


@asynccontextmanager
async def running_matcher(encoder: HasTarget, index: Index) -> AsyncIterator[RunningMatcher]:
    """Serve on a free loopback port."""
    client = EncoderClient(encoder.target, hide_auth_errors=True)
    matcher = Matcher(Retriever(client, 1_000_000), Reranker(client), 40)
    untouched: Any = None
    store: Any = FixedStore(Collection(CONFIG, index, untouched, untouched, untouched, untouched))
    servicer = MatcherServicer(
        store,
        matcher,
        untouched,
        untouched,
        DuplicateFinder(client),
        match_timeout_seconds=10,
        batch_match_concurrency=8,
    )
    server = GrpcServer("127.0.0.1", 0, MAX_REQUEST_BYTES, method_limits=METHOD_LIMITS)
    server.add(pb_grpc.add_MatcherServiceServicer_to_server, servicer, "textmatch.v1.MatcherService")
    channel = open_aio_channel(await server.start())
    try:
        yield RunningMatcher(pb_grpc.MatcherServiceStub(channel))
    finally:
        await channel.close()
        await server.drain(1)
        await client.close()


async def fill(index: Index, encoder: HasTarget, documents: Sequence[Document] = DOCUMENTS) -> str:
    """Store the documents as the encoder embeds them; returns the model's id."""
    client = EncoderClient(encoder.target)
    encoded = await client.encode(
        [document.text for document in documents], is_query=False, is_bulk=True, timeout_seconds=60
    )
    await client.close()
    await index.collections.prepare(encoded.model_id, encoded.embeddings.shape[1])
    await index.upsert(documents, encoded.embeddings, model_id=encoded.model_id)
    return encoded.model_id
