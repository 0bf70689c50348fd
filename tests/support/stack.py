"""The whole stack as real processes, for end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.qdrant import NOT_OURS, RealQdrant, running_real_qdrant
from textmatch.client import TextMatchClient
from textmatch.models.model_resolver import ENGLISH_BI_ENCODER, ENGLISH_CROSS_ENCODER

COMMAND_SECONDS = 240
# Half as large as the default models, and twice as fast.
ENGLISH_MODELS = {
    "TEXTMATCH_BI_ENCODER": ENGLISH_BI_ENCODER,
    "TEXTMATCH_CROSS_ENCODER": ENGLISH_CROSS_ENCODER,
}


@dataclass(frozen=True)
class Stack:
    """A running stack and how to reach it.

    Attributes:
        qdrant: the server that it was given; None if it started its own.
    """

    data_dir: Path
    qdrant: RealQdrant | None = None

    @property
    def file(self) -> dict[str, Any]:
        """What `stack.json` says now; pids change when a process is restarted."""
        content: dict[str, Any] = json.loads((self.data_dir / "stack.json").read_text())
        return content

    def pid(self, name: str) -> int:
        return self.pids(name)[0]

    def pids(self, name: str) -> list[int]:
        """Of a cluster of Qdrant, those of all nodes. A test of a Qdrant that is not ours is skipped."""
        if name != "qdrant" or self.qdrant is None:
            return [process["pid"] for process in self.file["processes"] if process["name"] == name]
        if not self.qdrant.nodes:
            pytest.skip(NOT_OURS)
        return [node.pid for node in self.qdrant.nodes]

    def kill(self, name: str) -> None:
        """SIGKILL one process of the stack; it is started again."""
        if name == "qdrant" and self.qdrant is not None and self.qdrant.server is not None:
            self.qdrant.server.kill()
            self.qdrant.server.start()
        else:
            os.kill(self.pid(name), signal.SIGKILL)

    def client(self, timeout_seconds: float = 30.0) -> TextMatchClient:
        return TextMatchClient(
            matcher=self.file["matcher"], encoder=self.file["encoder"], timeout_seconds=timeout_seconds
        )

    def textmatch(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command against this stack."""
        return textmatch(*arguments, "--data-dir", str(self.data_dir), **options)


def textmatch(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the `textmatch` command as a user does."""
    command = [str(Path(sys.executable).with_name("textmatch")), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False, **options
    )


@contextmanager
def running_stack(
    data_dir: Path, environment: Mapping[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[Stack]:
    """Start a stack, with the English models unless others are set; stop it at the end.

    It uses the real Qdrant that tests/support/qdrant.py starts or names, if there is one.
    """
    settings = {**os.environ, **ENGLISH_MODELS, **(environment or {})}
    with running_real_qdrant(data_dir / "qdrant") as qdrant:
        chosen = [*options, "--qdrant-url", qdrant.url] if qdrant else options
        started = textmatch("up", "--data-dir", str(data_dir), "--detach", *chosen, env=settings)
        assert started.returncode == 0, started.stderr
        try:
            yield Stack(data_dir, qdrant)
        finally:
            stopped = textmatch("down", "--data-dir", str(data_dir))
            assert stopped.returncode == 0, stopped.stderr


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Poll until the condition holds.

    Raises:
        AssertionError: it does not within the time, saying what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)
