"""One supervised process: started, watched, started again with growing pauses when it dies."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from standalone.stack import ProcessSpec

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 60.0
_READY_POLL_SECONDS = 0.1
_STOP_SECONDS = 25.0
_PR_SET_PDEATHSIG = 1

Report = Callable[[str], None]


class StartFailed(Exception):
    """A process ended before it was ready for the first time."""


class SupervisedProcess:
    """Keeps one process running until `stop`. Its output goes to `log_path`."""

    def __init__(self, spec: ProcessSpec, log_path: Path, report: Report) -> None:
        self.spec = spec
        self.log_path = log_path
        self.was_ready = asyncio.Event()
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._started_at = 0.0
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._is_stopping = False

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def run(self, on_change: Callable[[], None]) -> None:
        """Start the process and keep it running; returns after `stop`.

        Args:
            on_change: called whenever the process became ready, so with a new pid after a restart.

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
            await self._pause(code)

    async def stop(self) -> None:
        """SIGTERM; SIGKILL when that does not help in time."""
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

    def last_log_lines(self, count: int) -> list[str]:
        """The end of its log."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return lines[-count:]

    async def _start(self) -> asyncio.subprocess.Process:
        self._started_at = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                env=dict(self.spec.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches the supervisor alone, which then stops the others in order.
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

    async def _pause(self, code: int) -> None:
        if time.monotonic() - self._started_at > _STEADY_SECONDS:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._report(
            f"{self.spec.name} ended with code {code}; starting it again in {self._pause_seconds:g} s"
            f" (log: {self.log_path})"
        )
        await asyncio.sleep(self._pause_seconds)
        self._pause_seconds = min(self._pause_seconds * 2, _LONGEST_PAUSE_SECONDS)


def _end_with_supervisor() -> None:
    """Runs in the child: when the supervisor is killed, the kernel ends the child too (Linux only)."""
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
