"""Match on 100,000 documents, and its recall against exact search: `python -m bench.match [--quick]`.

Also Match with deadlines under load: the share of calls answered in time, and the share of the complete
answer that is left. With `--apart` the encoder has half of the processors and all other processes the other
half, as if on two machines.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer
from qdrant_client import AsyncQdrantClient, models

from bench.report import JsonFile, machine, mixed_texts, print_table, write_figures
from bench.servers import Apart, RunningStack, cpu_affinity, running_stack
from tests.support.qdrant import API_KEY
from textmatch.client import TextMatchClient
from textmatch.collection_config import DEFAULT_COLLECTION
from textmatch.collection_store import CollectionStore
from textmatch.encoder_client import EncoderClient
from textmatch.index.client import connect
from textmatch.index.schema import DENSE_VECTOR
from textmatch.index.search import SearchQuery
from textmatch.queue.keys import Keys
from textmatch.queue.redis_client import connect as connect_redis
from textmatch.runtime.channel import open_aio_channel
from textmatch.runtime.settings import DEFAULT_INSTALLATION
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc

_AMPLE_SECONDS = 60.0
_TOP_K = 10
_DOCUMENTS = 100_000
_QUICK_DOCUMENTS = 3_000
_QUERIES = 200
_CALLERS = (1, 8, 64)
_SECONDS, _QUICK_SECONDS = 20.0, 3.0
_DEADLINES_MS = (20, 50, 100, 300)
_FULL_CALLERS = 8
_PAUSE_SECONDS = 0.05
_RECALL_DEPTH = 100
_MIN_INDEXED_SHARE = 0.9


@dataclass(frozen=True)
class Answered:
    """One call: its duration, and the answer or the error."""

    seconds: float
    response: pb.MatchResponse | None
    error: str = ""


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few documents, short loads.")] = False,
    apart: Apart = False,
    json_path: JsonFile = None,
) -> None:
    """Measure everything, with all processes on this machine."""
    texts = list(dict.fromkeys(mixed_texts(_DOCUMENTS + 2 * _QUERIES)))
    queries, documents = texts[:_QUERIES], texts[_QUERIES:]
    documents = documents[: _QUICK_DOCUMENTS if quick else _DOCUMENTS]
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stack(Path(directory), affinity=cpu_affinity(apart)) as stack,
    ):
        with TextMatchClient(stack.addresses["matcher"]) as client:
            records = ({"id": str(number), "text": text} for number, text in enumerate(documents))
            client.ingest_all(records, wait=True)
        figures = asyncio.run(_measure(stack, queries, _QUICK_SECONDS if quick else _SECONDS))
    write_figures(figures, json_path)


async def _measure(stack: RunningStack, queries: Sequence[str], seconds: float) -> dict[str, float]:
    figures = await _recall_figures(stack, queries)
    async with open_aio_channel(stack.addresses["matcher"]) as channel:
        stub = pb_grpc.MatcherServiceStub(channel)
        for callers in _CALLERS:
            figures |= await _load_figures(stub, queries, callers, seconds)
        figures["overhead_p50_ms"] = figures["overhead_p50_ms_1"]
        figures |= await _deadline_figures(stub, queries, seconds)
    return figures


async def _recall_figures(stack: RunningStack, queries: Sequence[str]) -> dict[str, float]:
    """The share of the exact nearest hundred that recall finds, once the HNSW graph is built."""
    client = connect(f"http://{stack.addresses['qdrant']}", API_KEY, timeout_seconds=_AMPLE_SECONDS)
    redis = connect_redis(f"redis://{stack.addresses['redis']}/0")
    store = CollectionStore(redis, client, Keys(DEFAULT_INSTALLATION))
    collection, encoder = await store.get(DEFAULT_COLLECTION), EncoderClient(stack.addresses["encoder"])
    model_id = await collection.index.model_in_use()
    await _until_indexed(client, collection.name)
    shares = []
    for query in queries:
        encoded = await encoder.encode(
            [query], is_query=True, is_bulk=False, timeout_seconds=_AMPLE_SECONDS, model=model_id
        )
        exact = await client.query_points(
            collection.name,
            query=encoded.embeddings[0].tolist(),
            using=DENSE_VECTOR,
            limit=_RECALL_DEPTH,
            search_params=models.SearchParams(exact=True),
            with_payload=False,
        )
        query_vector = SearchQuery(_RECALL_DEPTH, encoded.embeddings[0])
        hits = await collection.index.search(query_vector, model_id=model_id)
        shares.append(len({hit.point for hit in hits} & {point.id for point in exact.points}) / _RECALL_DEPTH)
    await encoder.close()
    store.close()
    await client.close()
    await redis.aclose()
    return {"recall_at_100": float(np.mean(shares))}


async def _until_indexed(client: AsyncQdrantClient, collection: str) -> None:
    """Wait for the HNSW graph, which Qdrant builds after the writes; until then, search is exact and slow."""
    while True:
        info = await client.get_collection(collection)
        points, indexed = info.points_count or 0, info.indexed_vectors_count or 0
        is_indexed = points <= _QUICK_DOCUMENTS or indexed >= _MIN_INDEXED_SHARE * points
        if info.status is models.CollectionStatus.GREEN and is_indexed:
            return
        await asyncio.sleep(1.0)


async def _load_figures(
    stub: pb_grpc.MatcherServiceAsyncStub, queries: Sequence[str], callers: int, seconds: float
) -> dict[str, float]:
    """The figures of a closed load; no query is asked twice."""
    started = time.perf_counter()
    answers = await _closed_load(stub, queries, callers, seconds, _AMPLE_SECONDS, salt=f"{callers} callers")
    elapsed = time.perf_counter() - started
    timings = [one.response.timings for one in answers if one.response]
    total = np.array([one.total_ms for one in timings])
    stages = {
        name: np.array([getattr(one, f"{name}_ms") for one in timings])
        for name in ("encode", "recall", "rerank")
    }
    overhead = np.array([one.seconds * 1e3 for one in answers if one.response]) - sum(stages.values())
    p50, p95, p99 = np.percentile([one.seconds * 1e3 for one in answers], [50, 95, 99])
    print_table(
        f"{callers} callers on {machine()}",
        ["matches/s", "p50 ms", "p95 ms", "p99 ms", *(f"{name} share" for name in stages), "overhead p50 ms"],
        [
            [
                *(f"{value:.1f}" for value in (len(answers) / elapsed, p50, p95, p99)),
                *(f"{stage.sum() / total.sum():.2f}" for stage in stages.values()),
                f"{np.median(overhead):.2f}",
            ]
        ],
    )
    return {
        f"matches_per_second_{callers}": len(answers) / elapsed,
        f"p50_ms_{callers}": float(p50),
        f"p95_ms_{callers}": float(p95),
        f"p99_ms_{callers}": float(p99),
        f"overhead_p50_ms_{callers}": float(np.median(overhead)),
    }


async def _deadline_figures(
    stub: pb_grpc.MatcherServiceAsyncStub, queries: Sequence[str], seconds: float
) -> dict[str, float]:
    """For each deadline: the shares answered in time, complete, and left of the complete top ten."""
    whole = await asyncio.gather(*(_call(stub, query, _AMPLE_SECONDS) for query in queries[:50]))
    wanted = {
        query: {match.document.id for match in answer.response.matches}
        for query, answer in zip(queries, whole, strict=False)
        if answer.response
    }
    rows, figures = [], {}
    for deadline_ms in _DEADLINES_MS:
        deadline_seconds = deadline_ms / 1e3
        async with _background_caller(stub, queries):
            answers = await _closed_load(
                stub,
                queries,
                1,
                seconds,
                deadline_seconds,
                salt=f"{deadline_ms} ms",
                pause=lambda _: _PAUSE_SECONDS,
            )
            kept = await _kept(stub, wanted, deadline_seconds)
        full = await _closed_load(
            stub, queries, _FULL_CALLERS, seconds / 2, deadline_seconds, salt=f"full {deadline_ms}"
        )
        in_time, in_time_full = _in_time(answers), _in_time(full)
        complete = float(np.mean([bool(one.response and not one.response.degraded) for one in answers]))
        rows.append(
            [f"{deadline_ms} ms", f"{in_time:.4f}", f"{complete:.2f}", f"{kept:.2f}", f"{in_time_full:.2f}"]
        )
        for error, count in Counter(one.error for one in answers if one.error).most_common(3):
            typer.echo(f"{deadline_ms} ms: {count} of {len(answers)} x {error[:150]}", err=True)
        figures[f"in_time_{deadline_ms}_ms"] = in_time
        figures[f"kept_{deadline_ms}_ms"] = kept
        figures[f"in_time_full_{deadline_ms}_ms"] = in_time_full
    print_table(
        f"Deadlines with a background caller at 50 % duty cycle, or {_FULL_CALLERS} callers; {machine()}",
        ["deadline", "answered in time", "complete", "top ten kept", f"in time, {_FULL_CALLERS} callers"],
        rows,
    )
    return figures


async def _call(stub: pb_grpc.MatcherServiceAsyncStub, query: str, deadline_seconds: float) -> Answered:
    """One Match."""
    request = pb.MatchRequest(query=query, options=pb.MatchOptions(top_k=_TOP_K))
    started = time.perf_counter()
    try:
        response = await stub.Match(request, timeout=deadline_seconds)
    except grpc.aio.AioRpcError as error:
        return Answered(time.perf_counter() - started, None, f"{error.code().name}: {error.details()}")
    return Answered(time.perf_counter() - started, response)


async def _closed_load(
    stub: pb_grpc.MatcherServiceAsyncStub,
    queries: Sequence[str],
    callers: int,
    seconds: float,
    deadline_seconds: float,
    *,
    salt: str,
    pause: Callable[[Answered], float] = lambda _: 0.0,
) -> list[Answered]:
    """Callers that ask again after each answer and a pause; the salt makes every query unique."""
    answers: list[Answered] = []
    finish = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        count = 0
        while time.perf_counter() < finish:
            count += 1
            query = queries[(number * len(queries) // callers + count) % len(queries)]
            answered = await _call(stub, f"{query} {salt} {number} {count}", deadline_seconds)
            answers.append(answered)
            await asyncio.sleep(pause(answered))

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return answers


@asynccontextmanager
async def _background_caller(
    stub: pb_grpc.MatcherServiceAsyncStub, queries: Sequence[str]
) -> AsyncIterator[None]:
    """Another caller at 50 % duty cycle in the background, with an ample deadline."""
    salt = f"background {time.perf_counter()}"
    load = _closed_load(stub, queries, 1, inf, _AMPLE_SECONDS, salt=salt, pause=lambda one: one.seconds)
    asking = asyncio.create_task(load)
    try:
        yield
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking


def _in_time(answers: Sequence[Answered]) -> float:
    return float(np.mean([one.response is not None for one in answers]))


async def _kept(
    stub: pb_grpc.MatcherServiceAsyncStub, wanted: dict[str, set[str]], deadline_seconds: float
) -> float:
    shares = []
    for query, ids in wanted.items():
        answer = await _call(stub, query, deadline_seconds)
        found = {match.document.id for match in answer.response.matches} if answer.response else set()
        shares.append(len(found & ids) / len(ids))
    return float(np.mean(shares))


if __name__ == "__main__":
    typer.run(main)
