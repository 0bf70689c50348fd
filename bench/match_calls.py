"""Calls of Match with a deadline, in closed loads and beside a background."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import grpc

from textmatch.runtime.channel import open_aio_channel
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc

AMPLE_SECONDS = 60.0
_TOP_K = 10


@dataclass(frozen=True)
class Answered:
    """One call: how long it took, and the answer or what went wrong."""

    seconds: float
    response: pb.MatchResponse | None
    error: str = ""


@asynccontextmanager
async def open_stub(address: str) -> AsyncIterator[pb_grpc.MatcherServiceAsyncStub]:
    """Of the matcher there."""
    async with open_aio_channel(address) as channel:
        yield pb_grpc.MatcherServiceStub(channel)


async def call(stub: pb_grpc.MatcherServiceAsyncStub, query: str, deadline_seconds: float) -> Answered:
    """One Match."""
    request = pb.MatchRequest(query=query, options=pb.MatchOptions(top_k=_TOP_K))
    started = time.perf_counter()
    try:
        response = await stub.Match(request, timeout=deadline_seconds)
    except grpc.aio.AioRpcError as error:
        return Answered(time.perf_counter() - started, None, f"{error.code().name}: {error.details()}")
    return Answered(time.perf_counter() - started, response)


async def closed_load(
    stub: pb_grpc.MatcherServiceAsyncStub,
    queries: Sequence[str],
    callers: int,
    seconds: float,
    deadline_seconds: float,
    *,
    salt: str,
    pause_seconds: float = 0.0,
) -> list[Answered]:
    """So many callers, each asking again a pause after its answer; with the salt no query is asked twice."""
    answers: list[Answered] = []
    finish = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        count = 0
        while time.perf_counter() < finish:
            count += 1
            query = queries[(number * len(queries) // callers + count) % len(queries)]
            answers.append(await call(stub, f"{query} {salt} {number} {count}", deadline_seconds))
            await asyncio.sleep(pause_seconds)

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return answers


@asynccontextmanager
async def half_busy(stub: pb_grpc.MatcherServiceAsyncStub, queries: Sequence[str]) -> AsyncIterator[None]:
    """Meanwhile another caller asks half of the time, without a deadline to speak of."""

    async def ask() -> None:
        count = 0
        while True:
            count += 1
            answered = await call(
                stub, f"{queries[count % len(queries)]} {time.perf_counter()}", AMPLE_SECONDS
            )
            await asyncio.sleep(answered.seconds)

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
