"""The whole stack as processes of a benchmark, and the processor time and memory that each of them takes.

Which processors the encoder gets and which the rest: all, or half each as on machines of their own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import psutil
import typer

from standalone.stack import ProcessSpec, free_ports, process_specs

Apart = Annotated[
    bool,
    typer.Option("--apart", help="The encoder on half of the processors, everything else on the other half."),
]


@dataclass(frozen=True)
class Processors:
    """Numbers of processors, as the kernel counts them."""

    encoder: frozenset[int]
    others: frozenset[int]


def divided(is_apart: bool) -> Processors:
    """Half of the processors for each side, or all of them for both.

    Raises:
        typer.BadParameter: one processor cannot be divided.
    """
    available = sorted(os.sched_getaffinity(0))
    if not is_apart:
        return Processors(frozenset(available), frozenset(available))
    if len(available) < 2:
        raise typer.BadParameter("--apart needs at least two processors")
    half = len(available) // 2
    return Processors(frozenset(available[:half]), frozenset(available[half:]))


@contextmanager
def running_on(processors: frozenset[int]) -> Iterator[None]:
    """What starts meanwhile, threads and processes, stays on these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


_START_SECONDS = 180.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class RunningStack:
    """What runs, and where: addresses as `host:port`."""

    processes: Mapping[str, psutil.Process]
    addresses: Mapping[str, str]

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time of each process until now, with that of its children."""
        return {name: _cpu_seconds(process) for name, process in self.processes.items()}

    def rss_bytes(self) -> dict[str, int]:
        """Resident memory of each process, with that of its children."""
        return {name: rss_bytes(process) for name, process in self.processes.items()}


@contextmanager
def running_stack(
    directory: Path,
    environment: Mapping[str, str] | None = None,
    commands: Mapping[str, tuple[str, ...]] | None = None,
    processors: Processors | None = None,
) -> Iterator[RunningStack]:
    """Start the processes that `textmatch up` starts, and stop them at the end.

    Args:
        directory: for data and logs.
        environment: settings, beside those of this process.
        commands: what to run instead of a process, by its name.
        processors: where the encoder runs and where the rest; all of them are for both unless given.
    """
    settings = {**os.environ, "TEXTMATCH_LOG_LEVEL": "WARNING", **(environment or {})}
    ports = free_ports()
    specs = process_specs(directory, ports, settings)
    replaced = commands or {}
    places = processors or divided(is_apart=False)
    with ExitStack() as stack:
        processes = {}
        for spec in specs:
            wanted = replace(spec, command=replaced.get(spec.name, spec.command))
            with running_on(places.encoder if spec.name == "encoder" else places.others):
                processes[spec.name] = stack.enter_context(_running(wanted, directory / f"{spec.name}.log"))
        stack.enter_context(running_on(places.others))
        yield RunningStack(processes, {spec.name: spec.address for spec in specs})


@contextmanager
def _running(spec: ProcessSpec, log_path: Path) -> Iterator[psutil.Process]:
    with log_path.open("ab") as log:
        process = subprocess.Popen(spec.command, env=dict(spec.environment), stdout=log, stderr=log)
    try:
        if not asyncio.run(_becomes_ready(spec, process)):
            raise RuntimeError(f"{spec.name} is not ready; it wrote:\n{log_path.read_text()[-2_000:]}")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _becomes_ready(spec: ProcessSpec, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while not await spec.is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


def _cpu_seconds(process: psutil.Process) -> float:
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
