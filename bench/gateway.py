"""What JSON over HTTP costs over gRPC: `python -m bench.gateway [--quick]`.

Both are asked in turn in the same run, through one gateway and without it. Match is measured by one caller at
a time, without pair scores, whose time would hide the difference. Embeddings are measured by several callers.
"""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import typer

from bench.load_generator import ClosedLoad, Embed, run_load
from bench.report import JsonFile, machine, mixed_texts, print_table, write_figures
from bench.servers import running_stack
from textmatch.client import AsyncTextMatchClient, Rerank, TextMatchClient
from textmatch.vectors import Embeddings

_DOCUMENTS = 3_000
_CALLS, _QUICK_CALLS = 1_000, 150
_WARM_UP_CALLS = 30
_ROUNDS = 3
_SECONDS, _QUICK_SECONDS = 10.0, 3.0
_LOADS = (ClosedLoad(8, 64), ClosedLoad(8, 1))
_TOP_K = 10
_TIMEOUT_SECONDS = 60


class JsonConnection:
    """One connection that stays open. It does no more than a caller needs, so that the server is measured."""

    def __init__(self, address: str) -> None:
        self._host, self._port = address.rsplit(":", 1)

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def _connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port))

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer.

        Raises:
            RuntimeError: the status is not 200.
        """
        if self._reader.at_eof():
            # The gateway closes connections that are idle for five seconds.
            self._writer.close()
            await self._connect()
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        head += f"request-timeout: {_TIMEOUT_SECONDS}\r\n"
        self._writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        answer = await self._reader.readexactly(int(headers["content-length"]))
        if status.split()[1] != "200":
            raise RuntimeError(f"{path} answered {status}: {answer.decode()}")
        return json.loads(answer)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few calls, short loads.")] = False,
    json_path: JsonFile = None,
) -> None:
    """Measure everything, with all processes on this machine."""
    texts = list(dict.fromkeys(mixed_texts(2 * _DOCUMENTS)))
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stack(Path(directory), has_gateway=True) as stack,
    ):
        with TextMatchClient(stack.addresses["matcher"]) as client:
            records = ({"id": str(at), "text": text} for at, text in enumerate(texts[:_DOCUMENTS]))
            client.ingest_all(records, wait=True)
        figures = asyncio.run(_measure(stack.addresses, texts[_DOCUMENTS:], quick=quick))
    write_figures(figures, json_path)


async def _measure(addresses: Any, texts: list[str], *, quick: bool) -> dict[str, float]:
    async with AsyncTextMatchClient(
        addresses["matcher"], addresses["encoder"], timeout_seconds=_TIMEOUT_SECONDS
    ) as client:
        calls = _QUICK_CALLS if quick else _CALLS
        figures = await _match_figures(client, addresses["gateway"], texts, calls)
        seconds = _QUICK_SECONDS if quick else _SECONDS
        for load in _LOADS:
            figures |= await _embedding_figures(client, addresses["gateway"], texts, load, seconds)
    return figures


async def _match_figures(
    client: AsyncTextMatchClient, gateway: str, texts: list[str], calls: int
) -> dict[str, float]:
    """Medians of the same queries by both ways, in alternating order."""
    async with JsonConnection(gateway) as connection:

        async def by_grpc(query: str) -> None:
            await client.match(query, top_k=_TOP_K, rerank=Rerank.NONE)

        async def by_json(query: str) -> None:
            body = {"query": query, "top_k": _TOP_K, "rerank": "none"}
            await connection.post("/v1/collections/default:match", body)

        taken: dict[str, list[float]] = {"grpc": [], "json": []}
        ways: list[tuple[str, Callable[[str], Awaitable[None]]]] = [("grpc", by_grpc), ("json", by_json)]
        for number in range(_WARM_UP_CALLS + calls):
            for name, way in ways if number % 2 else reversed(ways):
                # No query twice, because the matcher remembers embeddings of queries.
                started = time.perf_counter()
                await way(f"{texts[number % len(texts)]} {number} {name}")
                if number >= _WARM_UP_CALLS:
                    taken[name].append((time.perf_counter() - started) * 1e3)
    grpc_ms, json_ms = (float(np.median(taken[name])) for name in ("grpc", "json"))
    print_table(
        f"Match, one caller, {machine()}",
        ["gRPC p50 ms", "JSON p50 ms", "overhead ms"],
        [[f"{one:.2f}" for one in (grpc_ms, json_ms, json_ms - grpc_ms)]],
    )
    return {
        "match_grpc_p50_ms": grpc_ms,
        "match_json_p50_ms": json_ms,
        "match_overhead_p50_ms": json_ms - grpc_ms,
    }


async def _embedding_figures(
    client: AsyncTextMatchClient, gateway: str, texts: list[str], load: ClosedLoad, seconds: float
) -> dict[str, float]:
    """Texts a second by both ways, as medians of some rounds."""

    async def by_grpc(batch: list[str]) -> Embeddings:
        return (await client.encode(batch)).embeddings

    rates: dict[str, list[float]] = {"grpc": [], "json": []}
    for _ in range(_ROUNDS):
        rates["grpc"].append((await run_load(by_grpc, load, texts, seconds / _ROUNDS)).texts_per_second)
        async with _json_embed(gateway, load.callers) as by_json:
            rates["json"].append((await run_load(by_json, load, texts, seconds / _ROUNDS)).texts_per_second)
    grpc_rate, json_rate = (float(np.median(rates[name])) for name in ("grpc", "json"))
    print_table(
        f"Embeddings, {load.callers} callers x {load.texts} texts, {machine()}",
        ["gRPC texts/s", "JSON texts/s", "share"],
        [[f"{grpc_rate:.0f}", f"{json_rate:.0f}", f"{json_rate / grpc_rate:.2f}"]],
    )
    return {
        f"embeddings_grpc_{load.name}": grpc_rate,
        f"embeddings_json_{load.name}": json_rate,
        f"embeddings_share_{load.name}": json_rate / grpc_rate,
    }


@asynccontextmanager
async def _json_embed(gateway: str, callers: int) -> AsyncIterator[Embed]:
    """Embeds over as many connections as there are callers."""
    free = asyncio.Queue[JsonConnection]()
    async with AsyncExitStack() as stack:
        for _ in range(callers):
            free.put_nowait(await stack.enter_async_context(JsonConnection(gateway)))

        async def embed(batch: list[str]) -> Embeddings:
            connection = await free.get()
            answer = await connection.post("/v1/embeddings", {"input": batch, "encoding_format": "base64"})
            free.put_nowait(connection)
            rows = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]]
            return np.stack(rows)

        yield embed


if __name__ == "__main__":
    typer.run(main)
