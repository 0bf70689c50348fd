"""`textmatch reindex` as a real process that a test may kill."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_SECONDS = 120.0


class ReindexCommand:
    """Runs the command with an environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it and return at once."""
        process = subprocess.Popen(
            [sys.executable, "-m", "textmatch.cli", "reindex", *arguments],
            env={**os.environ, **self._environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    async def run(self, *arguments: str) -> dict[str, Any]:
        """Run it with --json; it must succeed."""
        answer: dict[str, Any] = json.loads(await self.show(*arguments, "--json"))
        return answer

    async def show(self, *arguments: str) -> str:
        """Run it and return what it shows; it must succeed."""
        process = self.start(*arguments)
        output, errors = await asyncio.to_thread(process.communicate, None, _SECONDS)
        assert process.returncode == 0, errors
        return str(output)

    async def fail(self, *arguments: str) -> str:
        """Run it; it must fail with one line, which is returned."""
        process = self.start(*arguments)
        _, errors = await asyncio.to_thread(process.communicate, None, _SECONDS)
        assert process.returncode in {1, 2}, errors
        [line] = errors.splitlines()
        return str(line)

    def kill_all(self) -> None:
        """SIGKILL all processes that still run."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
