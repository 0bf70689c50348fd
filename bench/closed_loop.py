"""Closed loads: so many callers, each sending its next call when the last one is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from bench.servers import PEER_MODEL_NAME
from textmatch.encoder_client import EncoderClient
from textmatch.vectors import Embeddings, normalise

Embed = Callable[[list[str]], Awaitable[Embeddings]]

_TIMEOUT_SECONDS = 120.0
_WARM_UP_SHARE = 0.3


@dataclass(frozen=True)
class Load:
    """How many callers, and how many texts each sends in a call."""

    callers: int
    texts: int

    @property
    def name(self) -> str:
        """As in figures: `64x1`."""
        return f"{self.callers}x{self.texts}"


@dataclass(frozen=True)
class Measured:
    """What came of a load."""

    texts_per_second: float
    p50_ms: float
    p95_ms: float


def our_embed(client: EncoderClient) -> Embed:
    """Calls over gRPC."""

    async def embed(texts: list[str]) -> Embeddings:
        result = await client.encode(texts, is_query=False, is_bulk=False, timeout_seconds=_TIMEOUT_SECONDS)
        return result.embeddings

    return embed


def infinity_embed(client: httpx.AsyncClient) -> Embed:
    """Calls over infinity's HTTP API."""

    async def embed(texts: list[str]) -> Embeddings:
        response = await client.post("/embeddings", json={"model": PEER_MODEL_NAME, "input": texts})
        response.raise_for_status()
        rows = [item["embedding"] for item in response.json()["data"]]
        return normalise(np.array(rows, dtype=np.float32))

    return embed


def mosec_embed(client: httpx.AsyncClient) -> Embed:
    """Calls over the HTTP API of mosec_server.py."""

    async def embed(texts: list[str]) -> Embeddings:
        response = await client.post("/inference", json={"input": texts})
        response.raise_for_status()
        return normalise(np.array(response.json(), dtype=np.float32))

    return embed


async def run_load(embed: Embed, load: Load, texts: Sequence[str], seconds: float) -> Measured:
    """Warm up, then measure for so many seconds."""
    await _run(embed, load, texts, seconds * _WARM_UP_SHARE)
    return await _run(embed, load, texts, seconds)


async def _run(embed: Embed, load: Load, texts: Sequence[str], seconds: float) -> Measured:
    latencies: list[float] = []
    started = time.perf_counter()

    async def caller(number: int) -> None:
        position = number * len(texts) // load.callers
        while time.perf_counter() < started + seconds:
            batch = [texts[(position + offset) % len(texts)] for offset in range(load.texts)]
            position += load.texts
            called = time.perf_counter()
            await embed(batch)
            latencies.append(time.perf_counter() - called)

    await asyncio.gather(*(caller(number) for number in range(load.callers)))
    elapsed = time.perf_counter() - started
    p50, p95 = np.percentile(latencies, [50, 95]) * 1e3
    return Measured(len(latencies) * load.texts / elapsed, float(p50), float(p95))
