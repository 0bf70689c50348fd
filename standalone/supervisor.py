"""Runs the stack in the foreground: starts the processes, waits for health, restarts, stops in order."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from standalone.process import Report, StartFailed, SupervisedProcess
from standalone.stack import STACK_FILE, ProcessSpec, StackPorts, write_stack_file
from textmatch.errors import TextMatchError

LOCK_FILE = "supervisor.lock"
_LOG_LINES_SHOWN = 5
_LOCK_ATTEMPTS = 3
_LOCK_PAUSE_SECONDS = 0.05


class StackError(TextMatchError):
    """The stack cannot be started or stopped."""


@contextmanager
def held_data_dir(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process.

    Raises:
        StackError: another supervisor holds it, naming its pid.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / LOCK_FILE).open("a+") as lock:
        if not _try_lock(lock):
            raise StackError(f"{data_dir} is in use by another stack (pid {holder_pid(data_dir)})")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
        lock.truncate(0)


def holder_pid(data_dir: Path) -> int:
    """The pid of the supervisor that holds the data folder; 0 if none does."""
    path = data_dir / LOCK_FILE
    if not path.exists():
        return 0
    with path.open("r+") as lock:
        return 0 if _try_lock(lock) else int(lock.read() or 0)


def _try_lock(lock: IO[str]) -> bool:
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # Somebody who only asks for the holder's pid has it for a moment.
            time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return True
    return False


class Supervisor:
    """Runs all processes until a signal comes."""

    def __init__(self, specs: list[ProcessSpec], ports: StackPorts, data_dir: Path, report: Report) -> None:
        logs = data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._ports = ports
        self._data_dir = data_dir
        self._report = report
        self._specs = specs
        self._processes = {
            spec.name: SupervisedProcess(spec, logs / f"{spec.name}.log", report) for spec in specs
        }

    async def run(self, on_all_ready: Report) -> None:
        """Start everything, call `on_all_ready` with a summary, run until SIGTERM or SIGINT, stop everything.

        Raises:
            StackError: a process ended before it was ready; everything else is stopped again.
        """
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, stopped.set)
        running = {
            asyncio.create_task(self._run_one(process), name=name)
            for name, process in self._processes.items()
        }
        running.add(asyncio.create_task(self._announce(on_all_ready)))
        waiting = asyncio.create_task(stopped.wait())
        try:
            await self._until_stopped_or_failed(running, waiting)
        finally:
            await self._stop_all()
            for task in (waiting, *running):
                task.cancel()
            await asyncio.gather(waiting, *running, return_exceptions=True)
            (self._data_dir / STACK_FILE).unlink(missing_ok=True)

    async def _until_stopped_or_failed(
        self, running: set[asyncio.Task[None]], waiting: asyncio.Task[bool]
    ) -> None:
        pending: set[asyncio.Task[None]] = set(running)
        while not waiting.done():
            await asyncio.wait({waiting, *pending}, return_when=asyncio.FIRST_COMPLETED)
            ended = {task for task in pending if task.done()}
            pending -= ended
            for task in ended:
                self._check_start(task)

    def _check_start(self, task: asyncio.Task[None]) -> None:
        try:
            task.result()
        except StartFailed as error:
            process = self._processes[task.get_name()]
            end_of_log = "\n  ".join(process.last_log_lines(_LOG_LINES_SHOWN))
            raise StackError(f"{error}; the end of {process.log_path}:\n  {end_of_log}") from error

    async def _run_one(self, process: SupervisedProcess) -> None:
        for name in process.spec.after:
            await self._processes[name].was_ready.wait()
        await process.run(self._write_stack_file)

    async def _announce(self, on_all_ready: Report) -> None:
        for process in self._processes.values():
            await process.was_ready.wait()
            self._report(f"{process.spec.name:<10} {process.spec.address:<16} ready (pid {process.pid})")
        self._write_stack_file()
        on_all_ready(f"matcher on {self._processes['matcher'].spec.address}")

    def _write_stack_file(self) -> None:
        if not all(process.was_ready.is_set() for process in self._processes.values()):
            return
        pids = {name: process.pid for name, process in self._processes.items()}
        write_stack_file(self._data_dir, self._ports, self._specs, os.getpid(), pids)

    async def _stop_all(self) -> None:
        """The ones that depend on others first."""
        for process in reversed(self._processes.values()):
            await process.stop()
