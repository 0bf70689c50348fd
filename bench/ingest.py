"""The ingest path against the encoder alone, and Match during an ingest: `python -m bench.ingest [--quick]`.

The whole path, from a file to searchable documents, is compared with EncodeStream alone. Everything runs on
one machine, so the other processes take processor time from the encoder. A table shows how much for 1,000
documents, which varies less than the speed. With `--apart` the encoder has half of the processors and all
other processes the other half, as if on two machines.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from qdrant_client import QdrantClient, models

from bench.report import JsonFile, machine, mixed_texts, print_table, write_figures
from bench.servers import Apart, CpuAffinity, RunningStack, cpu_affinity, pinned_to, running_stack
from tests.support.qdrant import connect_to, running_real_qdrant
from textmatch.client import TextMatchClient
from textmatch.encoder_client import EncoderClient
from textmatch.runtime.channel import open_aio_channel
from textmatch.types import EncodeResult
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc
from workers.__main__ import main as run_worker

_STREAM_TEXTS = 64
_INDEXED_SECONDS = 600.0
_WORKER_WITHOUT_LANES = (sys.executable, "-m", "bench.ingest", "--as-worker-without-lanes")
_MATCH_TIMEOUT_SECONDS = 60.0
_WARM_UP_MATCHES = 5


@dataclass(frozen=True)
class Ingested:
    """One run of `textmatch ingest --wait`; processor time by process."""

    seconds: float
    cpu_seconds: Mapping[str, float]


@dataclass(frozen=True)
class PathRun:
    """One ingest, and how long EncodeStream took for the same texts before and after it."""

    ingested: Ingested
    stream_seconds: tuple[float, float]

    @property
    def share(self) -> float:
        """Speed of the whole path as a share of the encoder's speed."""
        return sum(self.stream_seconds) / 2 / self.ingested.seconds


@dataclass(frozen=True)
class MatchRun:
    """p95 of Match on an idle stack, and during an ingest."""

    idle_p95_ms: float
    busy_p95_ms: float

    @property
    def ratio(self) -> float:
        """Slowdown of Match by an ingest."""
        return self.busy_p95_ms / self.idle_p95_ms


def main(
    quick: Annotated[bool, typer.Option(help="Fewer documents; figures vary more.")] = False,
    apart: Apart = False,
    json_file: JsonFile = None,
    as_worker: Annotated[bool, typer.Option("--as-worker-without-lanes", hidden=True)] = False,
) -> None:
    """Measure and print."""
    if as_worker:
        sys.exit(_run_worker_without_lanes())
    document_count, rounds = (4_000, 1) if quick else (20_000, 3)
    paths, with_lanes, without_lanes = _measure(mixed_texts(document_count), rounds, cpu_affinity(apart))
    _print(document_count, paths, {"with lanes": with_lanes, "without lanes": without_lanes})
    figures = {
        "path_share": float(np.median([path.share for path in paths])),
        "match_p95_ratio": with_lanes.ratio,
        "match_p95_ratio_without_lanes": without_lanes.ratio,
    }
    write_figures(figures, json_file)


def _measure(
    texts: Sequence[str], rounds: int, affinity: CpuAffinity
) -> tuple[list[PathRun], MatchRun, MatchRun]:
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        # Both stacks use the same documents.
        with pinned_to(affinity.others), running_real_qdrant(data / "qdrant") as qdrant:
            with running_stack(data, affinity=affinity, qdrant=qdrant) as stack:
                paths = [_run_path(stack, texts, data / f"path-{number}.jsonl") for number in range(rounds)]
                with_lanes = _run_match(stack, texts, data / "with-lanes.jsonl")
            commands = {"worker": _WORKER_WITHOUT_LANES}
            with running_stack(data, commands=commands, affinity=affinity, qdrant=qdrant) as stack:
                without_lanes = _run_match(stack, texts, data / "without-lanes.jsonl")
    return paths, with_lanes, without_lanes


def _run_path(stack: RunningStack, texts: Sequence[str], file: Path) -> PathRun:
    write_documents(file, texts, file.stem)
    before = asyncio.run(stream_seconds(stack.addresses["encoder"], texts))
    ingested = ingest_file(file, stack, len(texts))
    wait_until_indexed(stack)
    after = asyncio.run(stream_seconds(stack.addresses["encoder"], texts))
    return PathRun(ingested, (before, after))


def _run_match(stack: RunningStack, texts: Sequence[str], file: Path) -> MatchRun:
    write_documents(file, texts, file.stem)
    wait_until_indexed(stack)
    with TextMatchClient(stack.addresses["matcher"], timeout_seconds=_MATCH_TIMEOUT_SECONDS) as client:
        for text in texts[:_WARM_UP_MATCHES]:
            client.match(text)
        idle_until = time.perf_counter() + max(5.0, len(texts) / 1_000)
        idle_p95_ms = _match_p95_ms(client, texts, lambda: time.perf_counter() < idle_until)
        ingest = subprocess.Popen(
            ingest_command(file, stack), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        busy_p95_ms = _match_p95_ms(client, texts, lambda: ingest.poll() is None)
    if ingest.returncode != 0:
        raise RuntimeError(f"ingest ended with {ingest.returncode}")
    return MatchRun(idle_p95_ms, busy_p95_ms)


def _match_p95_ms(client: TextMatchClient, texts: Sequence[str], goes_on: Callable[[], bool]) -> float:
    """p95 of matches, one after the other, while `goes_on` is true."""
    took_ms: list[float] = []
    while goes_on():
        started = time.perf_counter()
        client.match(texts[len(took_ms) % len(texts)])
        took_ms.append((time.perf_counter() - started) * 1e3)
    return float(np.percentile(took_ms, 95))


def write_documents(path: Path, texts: Sequence[str], prefix: str) -> None:
    """A file of JSON lines, with ids that begin with `prefix`."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": f"{prefix}-{number}", "text": text}) + "\n")


def ingest_command(path: Path, stack: RunningStack) -> list[str]:
    """`textmatch ingest FILE --wait --json` against this stack."""
    command = [str(Path(sys.executable).with_name("textmatch")), "ingest", str(path), "--wait", "--json"]
    return [*command, "--matcher", stack.addresses["matcher"]]


def ingest_file(path: Path, stack: RunningStack, document_count: int) -> Ingested:
    """Run the command until everything is searchable; the start of the command is not counted.

    Raises:
        RuntimeError: not every document was accepted.
    """
    before = _cpu_seconds(stack)
    command = subprocess.run(ingest_command(path, stack), capture_output=True, text=True, check=False)
    if command.returncode != 0:
        raise RuntimeError(f"ingest ended with {command.returncode}: {command.stderr}")
    after = _cpu_seconds(stack)
    counts = json.loads(command.stdout)
    if counts["accepted"] != document_count:
        raise RuntimeError(f"not all of {document_count} documents were accepted: {counts}")
    return Ingested(counts["seconds"], {name: after[name] - before[name] for name in before})


def wait_until_indexed(stack: RunningStack) -> None:
    """Wait until Qdrant has built its graph, because the build takes processor time from the measurement.

    Raises:
        RuntimeError: it takes too long.
    """
    deadline = time.monotonic() + _INDEXED_SECONDS
    with connect_to(f"http://{stack.addresses['qdrant']}") as client:
        while not _is_indexed(client):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the index was not built within {_INDEXED_SECONDS:g} s")
            time.sleep(0.5)


async def stream_seconds(address: str, texts: Sequence[str]) -> float:
    """Seconds that EncodeStream takes for the texts, as bulk work in messages of 64."""
    async with open_aio_channel(address) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        started = time.perf_counter()
        async for response in stub.EncodeStream(_requests(texts)):
            if response.WhichOneof("result") == "error":
                raise RuntimeError(f"EncodeStream failed: {response.error.message}")
        return time.perf_counter() - started


async def _requests(texts: Sequence[str]) -> AsyncIterator[pb.EncodeStreamRequest]:
    for start in range(0, len(texts), _STREAM_TEXTS):
        request = pb.EncodeRequest(
            texts=texts[start : start + _STREAM_TEXTS], role=pb.ROLE_DOCUMENT, priority=pb.PRIORITY_BULK
        )
        yield pb.EncodeStreamRequest(request=request)


def _is_indexed(client: QdrantClient) -> bool:
    names = [one.name for one in client.get_collections().collections]
    return all(client.get_collection(name).status is models.CollectionStatus.GREEN for name in names)


def _cpu_seconds(stack: RunningStack) -> dict[str, float]:
    """Processor time of the processes of the stack, and of the commands that this process has run."""
    commands = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {**stack.cpu_seconds(), "command": commands.ru_utime + commands.ru_stime}


def _run_worker_without_lanes() -> int:
    """Run a worker that sends bulk work as interactive calls, to show the effect of the encoder's lanes."""
    encode_in_lane = EncoderClient.encode

    async def encode(client: EncoderClient, texts: Sequence[str], **options: Any) -> EncodeResult:
        return await encode_in_lane(client, texts, **{**options, "is_bulk": False})

    EncoderClient.encode = encode  # type: ignore[method-assign, assignment]
    return run_worker()


def _print(count: int, paths: Sequence[PathRun], matches: Mapping[str, MatchRun]) -> None:
    rows = [
        [
            f"{number}",
            f"{count / path.ingested.seconds:.0f}",
            " / ".join(f"{count / seconds:.0f}" for seconds in path.stream_seconds),
            f"{path.share:.2f}",
        ]
        for number, path in enumerate(paths, start=1)
    ]
    columns = ["run", "file to searchable, documents/s", "EncodeStream before / after, texts/s", "share"]
    print_table(f"The whole path, {count:,} documents ({machine()})", columns, rows)
    names = paths[0].ingested.cpu_seconds
    rows = [
        [name, f"{np.median([path.ingested.cpu_seconds[name] for path in paths]) / count * 1e3:.3f}"]
        for name in names
    ]
    print_table("Processor time", ["process", "seconds for 1,000 documents"], rows)
    rows = [
        [name, f"{run.idle_p95_ms:.0f}", f"{run.busy_p95_ms:.0f}", f"{run.ratio:.1f}"]
        for name, run in matches.items()
    ]
    print_table("Match, p95 ms", ["", "idle", "during an ingest", "ratio"], rows)


if __name__ == "__main__":
    typer.run(main)
