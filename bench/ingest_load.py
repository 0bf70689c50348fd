"""The two ways for texts through the encoder that are compared: the whole path, and EncodeStream alone."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qdrant_client import QdrantClient, models

from bench.ingest_stack import RunningStack
from textmatch.runtime.channel import open_aio_channel
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

_STREAM_TEXTS = 64
_INDEXED_SECONDS = 600.0


@dataclass(frozen=True)
class Ingested:
    """One run of `textmatch ingest --wait`; processor time by process."""

    seconds: float
    cpu_seconds: Mapping[str, float]


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
    """Run the command until everything is searchable; its own start is not counted.

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
    """Wait until Qdrant builds no graph any more, which takes processor time from whatever is measured.

    Raises:
        RuntimeError: it does not come to rest.
    """
    host, _, port = stack.addresses["qdrant"].rpartition(":")
    deadline = time.monotonic() + _INDEXED_SECONDS
    client = QdrantClient(host=host, grpc_port=int(port), prefer_grpc=True, check_compatibility=False)
    with closing(client):
        while not _is_indexed(client):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the index was not built within {_INDEXED_SECONDS:g} s")
            time.sleep(0.5)


async def stream_seconds(address: str, texts: Sequence[str]) -> float:
    """How long EncodeStream takes for the texts, as bulk work in messages of 64."""
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
    """Of the processes of the stack, and of the commands that this process has run."""
    commands = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {**stack.cpu_seconds(), "command": commands.ru_utime + commands.ru_stime}
