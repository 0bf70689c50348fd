"""The standalone Qdrant server as a real process that a test may kill."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from qdrant_client import AsyncQdrantClient, QdrantClient

from textmatch.index.client import key_without_tls

STOP_SECONDS = 20.0
_TIMEOUT_SECONDS = 20


class EdgeProcess:
    """Listens on a free port of 127.0.0.1 and keeps its data in `data_dir`.

    Args:
        is_strict: collections forbid filters without an index.
    """

    def __init__(self, data_dir: Path, *, is_strict: bool = False) -> None:
        self.data_dir = data_dir
        self._options = ["--strict"] if is_strict else []
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self, port: int = 0) -> None:
        """Start and wait until it says where it listens: where it did before, unless a port is given."""
        command = [*server_command(self.data_dir, port or self.port), *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        assert words[:2] == ["listening", "on"], words
        self.port = int(words[2].rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._wait()

    def client(self) -> closing[QdrantClient]:
        """A blocking client for a `with` block."""
        return closing(connect(self.port))

    def _wait(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        code = self._process.wait(STOP_SECONDS)
        self._process.stdout.close()
        return code


def server_command(data_dir: Path, port: int = 0) -> list[str]:
    """The command line that a user types."""
    options = ["--data-dir", str(data_dir), "--port", str(port)]
    return [sys.executable, "-m", "standalone.qdrant_edge", *options]


def connect(port: int, host: str = "127.0.0.1") -> QdrantClient:
    """A blocking client that speaks gRPC only."""
    with key_without_tls():
        return QdrantClient(**_options(port, host))


def connect_async(port: int, host: str = "127.0.0.1") -> AsyncQdrantClient:
    """An asynchronous client that speaks gRPC only."""
    with key_without_tls():
        return AsyncQdrantClient(**_options(port, host))


def _options(port: int, host: str) -> dict[str, Any]:
    return {
        "host": host,
        "grpc_port": port,
        "prefer_grpc": True,
        "https": False,
        "check_compatibility": False,
        "timeout": _TIMEOUT_SECONDS,
        "api_key": os.environ.get("TEXTMATCH_QDRANT_API_KEY") or None,
    }
