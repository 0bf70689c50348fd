"""BatchMatch over real gRPC; what answers the queries is scripted."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from services.matcher.servicer import MatcherServicer
from tests.support.collections import FixedStore
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable
from textmatch.runtime.channel import MAX_MESSAGE_BYTES, open_aio_channel
from textmatch.runtime.server import GrpcServer
from textmatch.types import Match, MatchOptions, MatchResult
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc

CONCURRENCY = 4


class ScriptedMatcher:
    """Answers "slow" when told to, "bad" with an error, and everything else at once."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.is_full, self.is_idle = asyncio.Event(), asyncio.Event()
        self.running = self.most_running = 0
        self.seconds_given: list[float] = []
        self.are_bulk: set[bool] = set()

    async def match(
        self, collection: Any, query: str, options: MatchOptions, *, deadline: float, is_bulk: bool = False
    ) -> MatchResult:
        assert collection.name == "faq"
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.is_idle.clear()
        if self.running == CONCURRENCY:
            self.is_full.set()
        self.seconds_given.append(deadline - time.monotonic())
        self.are_bulk.add(is_bulk)
        try:
            await asyncio.sleep(0)
            if query == "slow":
                await self.may_answer.wait()
            if query == "bad":
                raise DependencyUnavailable("the index is away")
        finally:
            self.running -= 1
            if not self.running:
                self.is_idle.set()
        document = Document(query, f"text of {query}")
        return MatchResult(query, (Match(document, 0.5, 0.5, None),))


@pytest.fixture
async def served():
    scripted = ScriptedMatcher()
    servicer = MatcherServicer(
        FixedStore(SimpleNamespace(name="faq")),
        scripted,
        None,
        None,
        None,
        match_timeout_seconds=10,
        batch_match_concurrency=CONCURRENCY,
    )
    server = GrpcServer("127.0.0.1", 0, MAX_MESSAGE_BYTES)
    server.add(pb_grpc.add_MatcherServiceServicer_to_server, servicer, "textmatch.v1.MatcherService")
    address = await server.start()
    channel = open_aio_channel(address)
    yield scripted, pb_grpc.MatcherServiceStub(channel)
    await channel.close()
    await server.drain(1)


async def test_answers_come_as_soon_as_they_are_there_in_the_bulk_lane(served):
    scripted, stub = served
    queries = ["slow", *(f"q{number}" for number in range(50)), "bad"]
    answers = []
    async for response in stub.BatchMatch(pb.BatchMatchRequest(queries=queries), timeout=60):
        answers.append(response)
        if len(answers) == 51:
            # All others are there while the first is still worked on.
            assert 0 not in {one.query_index for one in answers}
            scripted.may_answer.set()
    assert sorted(one.query_index for one in answers) == list(range(52))
    by_index = {one.query_index: one for one in answers}
    assert by_index[51].error.message == "the index is away"
    assert by_index[7].response.matches[0].document.id == "q6"
    assert scripted.most_running == CONCURRENCY
    assert scripted.are_bulk == {True}


async def test_a_query_has_all_the_time_of_the_call(served):
    scripted, stub = served
    async for _ in stub.BatchMatch(pb.BatchMatchRequest(queries=["a"]), timeout=300):
        assert 200 < scripted.seconds_given[0] < 301
    async for _ in stub.BatchMatch(pb.BatchMatchRequest(queries=["a"])):
        assert 5 < scripted.seconds_given[1] < 11


async def test_a_caller_who_leaves_stops_the_work(served):
    scripted, stub = served
    call = stub.BatchMatch(pb.BatchMatchRequest(queries=["slow"] * 100), timeout=60)
    async with asyncio.timeout(30):
        await scripted.is_full.wait()
        call.cancel()
        await scripted.is_idle.wait()
    assert len(scripted.seconds_given) == CONCURRENCY
