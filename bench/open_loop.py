"""Open loads: calls start when they are due, whatever became of those before; from processes of their own."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from textmatch.v1 import encoder_service_pb2 as pb

_METHOD = f"/{pb.DESCRIPTOR.services_by_name['EncoderService'].full_name}/Encode"
_START_SECONDS = 5.0
_OK = grpc.StatusCode.OK.value[0]
_REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
_LATE = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@dataclass(frozen=True)
class OpenLoad:
    """Calls of so many texts each, evenly spaced for so many seconds, none of them retried."""

    calls_per_second: float
    texts_per_call: int
    seconds: float
    deadline_seconds: float


@dataclass(frozen=True)
class Calls:
    """What became of every call.

    Arrays of one row a call: `sent_at` in seconds since the load began, `behind_seconds` by which it left
    later than it was due, `took_seconds` until its end, `code` as gRPC numbers them.
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
        """Told to come back later."""
        return np.isin(self.code, _REFUSED)

    @property
    def is_late(self) -> NDArray[np.bool_]:
        """Neither answered nor refused when the deadline passed."""
        return np.isin(self.code, _LATE) | (np.isin(self.code, _OK) & self._passed_deadline)

    @property
    def is_failed(self) -> NDArray[np.bool_]:
        """Ended in any other way."""
        return ~(self.is_answered | self.is_refused | self.is_late)

    @property
    def _passed_deadline(self) -> NDArray[np.bool_]:
        return np.greater(self.took_seconds, self.deadline_seconds)


@dataclass(frozen=True)
class _Share:
    """What one process does of a load; it begins at `starts_at`, as `time.time` counts."""

    address: str
    texts: Sequence[str]
    load: OpenLoad
    starts_at: float


class Clients:
    """So many processes that offer a load together."""

    def __init__(self, processes: int) -> None:
        self._processes = processes

    async def offer(
        self, address: str, texts: Sequence[str], load: OpenLoad, started: asyncio.Event
    ) -> Calls:
        """Offer it and wait for the last call; `started` is set at the moment the first one is due."""
        loop = asyncio.get_running_loop()
        starts_at = time.time() + _START_SECONDS
        interval_seconds = 1 / load.calls_per_second
        share = OpenLoad(
            load.calls_per_second / self._processes,
            load.texts_per_call,
            load.seconds,
            load.deadline_seconds,
        )
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._processes, mp_context=context) as pool:
            shares = [
                loop.run_in_executor(
                    pool,
                    _offer_share,
                    _Share(address, texts, share, starts_at + number * interval_seconds),
                )
                for number in range(self._processes)
            ]
            await asyncio.sleep(starts_at - time.time())
            started.set()
            return _join(await asyncio.gather(*shares))


def _offer_share(share: _Share) -> Calls:
    return asyncio.run(_offer(share))


async def _offer(share: _Share) -> Calls:
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
    """Made beforehand, so that the clients leave the processor to the server."""
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
