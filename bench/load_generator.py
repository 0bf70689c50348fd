"""Closed loops, where callers wait for each answer, and open loops, where calls start on time.

The calls of an open loop start when they are due, even if earlier calls have not ended. Separate processes
send them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event

import grpc
import numpy as np
from numpy.typing import NDArray

from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.vectors import Embeddings

Embed = Callable[[list[str]], Awaitable[Embeddings]]

_WARM_UP_SHARE = 0.3
_METHOD = f"/{pb.DESCRIPTOR.services_by_name['EncoderService'].full_name}/Encode"
_FIRST_ANSWER_SECONDS = 60.0
# Time for the client processes to start.
_START_SECONDS = 5.0
_OK = grpc.StatusCode.OK.value[0]
_REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
_LATE = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@dataclass(frozen=True)
class ClosedLoad:
    """Number of callers, and texts in each call."""

    callers: int
    texts: int

    @property
    def name(self) -> str:
        """As in figures: `64x1`."""
        return f"{self.callers}x{self.texts}"

    def batches(self, texts: Sequence[str], caller: int) -> Iterator[list[str]]:
        """The texts of each call of one caller, endlessly; every caller starts at a different text."""
        position = caller * len(texts) // self.callers
        while True:
            yield [texts[(position + offset) % len(texts)] for offset in range(self.texts)]
            position += self.texts


@dataclass(frozen=True)
class Measured:
    """Throughput of a load, and percentiles of the latency of its calls."""

    texts_per_second: float
    p50_ms: float
    p95_ms: float


async def run_load(embed: Embed, load: ClosedLoad, texts: Sequence[str], seconds: float) -> Measured:
    """Warm up, then measure for `seconds`."""
    await _run(embed, load, texts, seconds * _WARM_UP_SHARE)
    return await _run(embed, load, texts, seconds)


@asynccontextmanager
async def background_load(embed: Embed, load: ClosedLoad, texts: Sequence[str]) -> AsyncIterator[None]:
    """Keep a closed load running during the block.

    Raises:
        RuntimeError: a call failed.
    """

    async def call(number: int) -> None:
        for batch in load.batches(texts, number):
            await embed(batch)

    tasks = [asyncio.create_task(call(number)) for number in range(load.callers)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if not isinstance(end, asyncio.CancelledError):
            raise RuntimeError("a call of the background load failed") from end


@asynccontextmanager
async def background_bulk(address: str, load: ClosedLoad, texts: Sequence[str]) -> AsyncIterator[None]:
    """As `background_load`, with bulk calls from another process: messages of MB would delay this one.

    Raises:
        RuntimeError: a call failed, or none was answered within a minute.
    """
    context = multiprocessing.get_context("spawn")
    answered = context.Event()
    process = context.Process(target=_call_in_bulk, args=(address, load, list(texts), answered), daemon=True)
    process.start()
    try:
        if not await asyncio.to_thread(answered.wait, _FIRST_ANSWER_SECONDS):
            raise RuntimeError("no call of the background load was answered")
        yield
        has_failed = not process.is_alive()
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)
    if has_failed:
        raise RuntimeError("a call of the background load failed")


def _call_in_bulk(address: str, load: ClosedLoad, texts: Sequence[str], answered: Event) -> None:
    asyncio.run(_send_bulk(address, load, texts, answered))


async def _send_bulk(address: str, load: ClosedLoad, texts: Sequence[str], answered: Event) -> None:
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        encode = channel.unary_unary(_METHOD, request_serializer=None, response_deserializer=None)

        async def call(number: int) -> None:
            batch = next(load.batches(texts, number))
            request = pb.EncodeRequest(texts=batch, priority=pb.PRIORITY_BULK).SerializeToString()
            while True:
                await encode(request)
                answered.set()

        await asyncio.gather(*(call(number) for number in range(load.callers)))


async def _run(embed: Embed, load: ClosedLoad, texts: Sequence[str], seconds: float) -> Measured:
    latencies: list[float] = []
    started = time.perf_counter()

    async def call(number: int) -> None:
        for batch in load.batches(texts, number):
            called = time.perf_counter()
            if called >= started + seconds:
                return
            await embed(batch)
            latencies.append(time.perf_counter() - called)

    await asyncio.gather(*(call(number) for number in range(load.callers)))
    elapsed = time.perf_counter() - started
    p50, p95 = np.percentile(latencies, [50, 95]) * 1e3
    return Measured(len(latencies) * load.texts / elapsed, float(p50), float(p95))


@dataclass(frozen=True)
class OpenLoad:
    """Calls at a fixed rate for `seconds`, evenly spaced, not retried."""

    calls_per_second: float
    texts_per_call: int
    seconds: float
    deadline_seconds: float


@dataclass(frozen=True)
class Calls:
    """The outcome of every call of an open load.

    Arrays of shape (calls,): `sent_at` in seconds since the load began, `behind_seconds` between when a call
    was due and when it was sent, `took_seconds` until its end, `code` as gRPC numbers it.
    """

    sent_at: NDArray[np.float64]
    behind_seconds: NDArray[np.float64]
    took_seconds: NDArray[np.float64]
    code: NDArray[np.int64]
    deadline_seconds: float
    client_cpu_seconds: float

    @property
    def ended_at(self) -> NDArray[np.float64]:
        """Seconds since the load began."""
        return self.sent_at + self.took_seconds

    @property
    def is_answered(self) -> NDArray[np.bool_]:
        """Answered within the deadline."""
        return np.isin(self.code, _OK) & ~self._passed_deadline

    @property
    def is_refused(self) -> NDArray[np.bool_]:
        """Refused with RESOURCE_EXHAUSTED."""
        return np.isin(self.code, _REFUSED)

    @property
    def is_late(self) -> NDArray[np.bool_]:
        """Neither answered nor refused when the deadline passed."""
        return np.isin(self.code, _LATE) | (np.isin(self.code, _OK) & self._passed_deadline)

    @property
    def is_failed(self) -> NDArray[np.bool_]:
        """Ended with another status."""
        return ~(self.is_answered | self.is_refused | self.is_late)

    @property
    def _passed_deadline(self) -> NDArray[np.bool_]:
        return np.greater(self.took_seconds, self.deadline_seconds)


@dataclass(frozen=True)
class _Share:
    """The part of a load that one process offers; it begins at `starts_at`, a `time.time`."""

    address: str
    texts: Sequence[str]
    load: OpenLoad
    starts_at: float


async def offer(
    address: str, texts: Sequence[str], load: OpenLoad, started: asyncio.Event, processes: int
) -> Calls:
    """Send a load from client processes and wait for the last call; sets `started` when the first is due."""
    loop = asyncio.get_running_loop()
    starts_at = time.time() + _START_SECONDS
    share = replace(load, calls_per_second=load.calls_per_second / processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        shares = [
            loop.run_in_executor(
                pool, _offer_share, _Share(address, texts, share, starts_at + number / load.calls_per_second)
            )
            for number in range(processes)
        ]
        await asyncio.sleep(starts_at - time.time())
        started.set()
        return _join(await asyncio.gather(*shares))


def _offer_share(share: _Share) -> Calls:
    return asyncio.run(_send_calls(share))


async def _send_calls(share: _Share) -> Calls:
    load = share.load
    requests = _requests(share.texts, load.texts_per_call)
    rows: list[tuple[float, float, float, int]] = []
    running: set[asyncio.Task[None]] = set()
    async with grpc.aio.insecure_channel(share.address, options=[("grpc.enable_retries", 0)]) as channel:
        encode = channel.unary_unary(_METHOD, request_serializer=None, response_deserializer=None)
        await channel.channel_ready()
        wait_seconds = share.starts_at - time.time()
        if wait_seconds < 0:
            raise RuntimeError(f"a client process started {-wait_seconds:.1f} s too late")
        await asyncio.sleep(wait_seconds)
        cpu_before = time.process_time()
        began = time.perf_counter()

        async def call(request: bytes, due: float) -> None:
            sent = time.perf_counter()
            running_call = encode(request, timeout=load.deadline_seconds)
            code = await running_call.code()
            rows.append((sent - began, sent - due, time.perf_counter() - sent, code.value[0]))

        for number in range(round(load.seconds * load.calls_per_second)):
            due = began + number / load.calls_per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if time.perf_counter() > began + load.seconds:
                break
            task = asyncio.create_task(call(requests[number % len(requests)], due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
    cpu_seconds = time.process_time() - cpu_before
    sent_at, behind, took, code = np.array(rows, dtype=np.float64).T
    return Calls(sent_at, behind, took, code.astype(np.int64), load.deadline_seconds, cpu_seconds)


def _requests(texts: Sequence[str], texts_per_call: int) -> list[bytes]:
    """Serialized in advance, to leave the processor to the server during the load."""
    return [
        pb.EncodeRequest(texts=texts[start : start + texts_per_call]).SerializeToString()
        for start in range(0, len(texts) - texts_per_call + 1, texts_per_call)
    ]


def _join(parts: Sequence[Calls]) -> Calls:
    return Calls(
        sent_at=np.concatenate([part.sent_at for part in parts]),
        behind_seconds=np.concatenate([part.behind_seconds for part in parts]),
        took_seconds=np.concatenate([part.took_seconds for part in parts]),
        code=np.concatenate([part.code for part in parts]),
        deadline_seconds=parts[0].deadline_seconds,
        client_cpu_seconds=sum(part.client_cpu_seconds for part in parts),
    )
