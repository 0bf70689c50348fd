"""Runs the stack in the foreground: starts the processes, waits for health, restarts, stops in order.

The data folder is locked by the supervisor that uses it; the lock file holds its pid.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from standalone.stack import STACK_FILE, Probe, ProcessSpec, StackPorts, write_stack_file
from textmatch.errors import TextMatchError

_LOCK_FILE = "supervisor.lock"
_LOCK_ATTEMPTS = 3
_LOCK_PAUSE_SECONDS = 0.05
_LOG_LINES_SHOWN = 5
# The delay before a restart doubles from the first to the longest. A process that ran steadily resets it.
_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 30.0
_STEADY_SECONDS = 60.0
_READY_POLL_SECONDS = 0.1
_STOP_SECONDS = 25.0
# A process is killed after so many checks in a row that say so.
_LIVENESS_SECONDS = 10.0
_LIVENESS_CHECKS = 3
_PR_SET_PDEATHSIG = 1

Report = Callable[[str], None]


class StackError(TextMatchError):
    """The stack cannot be started or stopped."""


class StartFailed(Exception):
    """A process ended before it was ready for the first time."""


@contextmanager
def held_data_dir(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process.

    Raises:
        StackError: another supervisor holds it; the message has its pid.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / _LOCK_FILE).open("a+") as lock:
        if not _try_lock(lock):
            raise StackError(f"{data_dir} is in use by another stack (pid {holder_pid(data_dir)})")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
        lock.truncate(0)


def holder_pid(data_dir: Path) -> int:
    """The pid of the supervisor that holds the data folder; 0 if none does."""
    path = data_dir / _LOCK_FILE
    if not path.exists():
        return 0
    with path.open("r+") as lock:
        return 0 if _try_lock(lock) else int(lock.read() or 0)


class SupervisedProcess:
    """Keeps one process running until `stop`. Its output goes to `log_path`."""

    def __init__(self, spec: ProcessSpec, log_path: Path, report: Report) -> None:
        self.spec = spec
        self.log_path = log_path
        self.was_ready = asyncio.Event()
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._started_at = 0.0
        self._delay_seconds = _FIRST_DELAY_SECONDS
        self._is_stopping = False

    @property
    def pid(self) -> int:
        """The process id; 0 while it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def run(self, on_change: Callable[[], None]) -> None:
        """Start the process and keep it running; returns after `stop`.

        Args:
            on_change: called when the process became ready, also after a restart, when it has a new pid.

        Raises:
            StartFailed: it ended before it was ready for the first time.
        """
        while not self._is_stopping:
            process = await self._start()
            ready = asyncio.create_task(self._wait_until_ready(on_change))
            code = await process.wait()
            ready.cancel()
            if self._is_stopping:
                return
            if not self.was_ready.is_set():
                raise StartFailed(f"{self.spec.name} ended with code {code} before it was ready")
            await self._wait_before_restart(code)

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if it does not end in time."""
        self._is_stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            self._report(f"{self.spec.name} did not stop within {_STOP_SECONDS:.0f} s: killing it")
            process.kill()
            await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        self._started_at = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                env=dict(self.spec.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches only the supervisor, which then stops the other processes in order.
                start_new_session=True,
                preexec_fn=_end_with_supervisor,
            )
        return self._process

    async def _wait_until_ready(self, on_change: Callable[[], None]) -> None:
        while not await self.spec.is_ready():  # noqa: ASYNC110 -- another process cannot set an Event
            await asyncio.sleep(_READY_POLL_SECONDS)
        if self.was_ready.is_set():
            self._report(f"{self.spec.name} is back (pid {self.pid})")
        self.was_ready.set()
        on_change()
        if self.spec.must_restart is not None:
            await self._kill_when_stalled(self.spec.must_restart)

    async def _kill_when_stalled(self, must_restart: Probe) -> None:
        checks = 0
        while checks < _LIVENESS_CHECKS:
            await asyncio.sleep(_LIVENESS_SECONDS)
            checks = checks + 1 if await must_restart() else 0
        if self._process is not None and not self._is_stopping:
            self._report(f"{self.spec.name} does not make progress: killing it (see {self.log_path})")
            self._process.kill()

    async def _wait_before_restart(self, code: int) -> None:
        if time.monotonic() - self._started_at > _STEADY_SECONDS:
            self._delay_seconds = _FIRST_DELAY_SECONDS
        self._report(
            f"{self.spec.name} ended with code {code}; starting it again in {self._delay_seconds:g} s"
            f" (log: {self.log_path})"
        )
        await asyncio.sleep(self._delay_seconds)
        self._delay_seconds = min(self._delay_seconds * 2, _LONGEST_DELAY_SECONDS)


class Supervisor:
    """Runs all processes until it gets SIGTERM or SIGINT."""

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
        """Start everything, call `on_all_ready` with a summary, run until a signal, stop everything.

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
            lines = process.log_path.read_text(errors="replace").splitlines()
            end_of_log = "\n  ".join(lines[-_LOG_LINES_SHOWN:])
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
        """Stop in reverse order, dependents first."""
        for process in reversed(self._processes.values()):
            await process.stop()


def _try_lock(lock: IO[str]) -> bool:
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # A process that reads the holder's pid holds the lock for a moment.
            time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return True
    return False


def _end_with_supervisor() -> None:
    """Runs in the child: when the supervisor is killed, the kernel kills the child too (Linux only)."""
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
