"""`python -m workers` as a real process that a test may kill."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

from tests.support.redis import free_port

_START_SECONDS = 20.0
_STOP_SECONDS = 20.0


class WorkerProcess:
    """A worker with quick redelivery, and its metrics."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._port = free_port()
        self._log = log
        quick = {
            "TEXTMATCH_WORKER_VISIBILITY_TIMEOUT_SECONDS": "2",
            "TEXTMATCH_WORKER_SWEEP_SECONDS": "0.5",
            "TEXTMATCH_WORKER_METRICS_PORT": str(self._port),
            "TEXTMATCH_LOG_STYLE": "text",
        }
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers"],
                env={**os.environ, **quick, **environment},
                stdout=output,
                stderr=output,
            )

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while self.metric("textmatch_worker_ready") != 1.0:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, f"the worker does not become ready: {self.log}"
            time.sleep(0.05)

    def metric(self, name: str) -> float | None:
        """The value of a sample, labels included in the name; None if there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
                page = answer.read().decode()
        except (URLError, ConnectionError):
            return None
        found = re.search(rf"^{re.escape(name)} (\S+)$", page, flags=re.MULTILINE)
        return float(found[1]) if found else None

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self._process.terminate()
        return self._process.wait(_STOP_SECONDS)
