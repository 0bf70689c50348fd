"""A thousand clients that leave in the middle of a stream leak no memory, threads or connections."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.encoder import start_encoder
from tests.support.redis import free_port
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

pytestmark = pytest.mark.slow

STREAMS = 1_000
AT_ONCE = 25
TEXTS = [f"how do I sort a list of {number} numbers" for number in range(64)]
# What memory pools may keep; a leak of one batch per stream would be twenty times as much.
GROWTH_BYTES = 32 * 1024 * 1024


async def requests() -> AsyncIterator[pb.EncodeStreamRequest]:
    while True:
        yield pb.EncodeStreamRequest(request=pb.EncodeRequest(texts=TEXTS, priority=pb.PRIORITY_BULK))


async def break_off(address: str, number: int) -> None:
    """Leave in the middle of a stream: some by cancelling, some by closing the connection."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = pb_grpc.EncoderServiceStub(channel).EncodeStream(requests(), timeout=60)
        for _ in range(number % 3):
            await call.read()
        if number % 2:
            call.cancel()


async def break_all(address: str, count: int) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with limit:
            await break_off(address, number)

    await asyncio.gather(*(one(number) for number in range(count)))


def samples(metrics_port: int, name: str) -> list[float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return [sample.value for family in families for sample in family.samples if sample.name == name]


def wait_until_idle(process: psutil.Process, metrics_port: int, connections: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        queued = sum(samples(metrics_port, "textmatch_encoder_queue_tokens"))
        if not queued and len(process.net_connections()) <= connections:
            return
        time.sleep(0.1)
    pytest.fail(f"{queued} tokens are queued, {len(process.net_connections())} connections are open")


def test_a_thousand_broken_streams_leave_nothing_behind(model_directories: dict[str, Path]):
    metrics_port = free_port()
    started, address = start_encoder(
        {
            "TEXTMATCH_BI_ENCODER": str(model_directories["plain"]),
            "TEXTMATCH_CROSS_ENCODER": "none",
            "TEXTMATCH_ENCODER_METRICS_PORT": str(metrics_port),
        }
    )
    try:
        process = psutil.Process(started.pid)
        # The first streams fill pools that stay.
        asyncio.run(break_all(address, STREAMS // 5))
        wait_until_idle(process, metrics_port, connections=2)
        before_bytes, before_threads = process.memory_info().rss, process.num_threads()

        asyncio.run(break_all(address, STREAMS))
        wait_until_idle(process, metrics_port, connections=2)
        assert process.memory_info().rss - before_bytes < GROWTH_BYTES
        assert process.num_threads() <= before_threads + 2
        with grpc.insecure_channel(address) as channel:
            answer = pb_grpc.EncoderServiceStub(channel).Encode(pb.EncodeRequest(texts=TEXTS), timeout=10)
        assert len(answer.token_counts) == len(TEXTS)
    finally:
        started.terminate()
        assert started.wait(30) == 0
