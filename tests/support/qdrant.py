"""The Qdrant of tests and benchmarks: the embedded server, a real one, or a cluster of real ones.

    TEXTMATCH_QDRANT_BIN=/path/to/qdrant    start this binary instead of the embedded server
    TEXTMATCH_QDRANT_NODES=3                start a cluster of it behind a balancer
    TEXTMATCH_QDRANT_COPIES=3,2             copies of each shard, and how many must take a write
    TEXTMATCH_QDRANT_STRICT=1               collections forbid filters without an index
    TEXTMATCH_QDRANT_API_KEY=...            the server asks for this key (not the embedded one)
    TEXTMATCH_QDRANT_URL=http://host:6334   use a server that somebody runs; tests that stop it are skipped

The server of TEXTMATCH_QDRANT_URL must have no collections at the begin. Those of the tests are deleted.
Environment variables QDRANT__A__B reach the binary, too. A stack of processes uses a real server by
`textmatch up --qdrant-url`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from qdrant_client import QdrantClient

from standalone.stack import any_free
from tests.integration.qdrant.edge_process import STOP_SECONDS, EdgeProcess, connect

URL = os.environ.get("TEXTMATCH_QDRANT_URL", "")
BINARY = os.environ.get("TEXTMATCH_QDRANT_BIN", "")
NODES = int(os.environ.get("TEXTMATCH_QDRANT_NODES", "1"))
COPIES, NEEDED = (int(one) for one in os.environ.get("TEXTMATCH_QDRANT_COPIES", "2,2").split(","))
IS_STRICT = bool(os.environ.get("TEXTMATCH_QDRANT_STRICT"))
API_KEY = os.environ.get("TEXTMATCH_QDRANT_API_KEY", "")

NOT_OURS = "TEXTMATCH_QDRANT_URL names a server that is not ours"

_START_SECONDS = 120.0
_PROBE_SECONDS = 2.0
_FOLLOW_SECONDS = 0.2
_GRPC_PORT = 6334
_CHUNK_BYTES = 64 * 1024
_LOG_BYTES = 3_000


class QdrantServer(Protocol):
    """A server that a test may stop, kill and start again. It keeps its port."""

    port: int

    @property
    def pid(self) -> int:
        """Of the process; of a cluster, of its first node."""

    def start(self) -> None:
        """Start and wait until it answers."""

    def kill(self) -> None:
        """SIGKILL."""

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""


class QdrantNode:
    """A process of the real server with its data in a folder.

    Args:
        is_strict: collections forbid filters without an index.
        bootstrap: the internal address of a node of its cluster; "" if it is the first one.
    """

    def __init__(
        self, data_dir: Path, *, is_strict: bool = False, is_clustered: bool = False, bootstrap: str = ""
    ) -> None:
        self.data_dir = data_dir
        self._is_strict = is_strict
        self.port = any_free()
        self._http_port = any_free()
        self._internal_port = any_free()
        self._is_clustered = is_clustered
        self._bootstrap = bootstrap
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def internal_address(self) -> str:
        """Where other nodes reach it."""
        return f"http://127.0.0.1:{self._internal_port}"

    @property
    def nodes(self) -> Sequence[QdrantNode]:
        """Itself."""
        return [self]

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            with urlopen(f"http://127.0.0.1:{self._http_port}/readyz", timeout=_PROBE_SECONDS) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def launch(self) -> None:
        """Start and return at once."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        command = [BINARY]
        if self._is_clustered:
            command += ["--uri", self.internal_address]
            command += ["--bootstrap", self._bootstrap] if self._bootstrap else []
        with (self.data_dir / "qdrant.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.data_dir, env=self._environment(), stdout=log, stderr=log
            )

    def start(self) -> None:
        """Start and wait until it is ready."""
        self.launch()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Poll /readyz.

        Raises:
            AssertionError: it ended, or is not ready in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not self.is_ready():
            assert self._process is not None
            assert self._process.poll() is None, self.end_of_log()
            assert time.monotonic() < deadline, f"{self.data_dir} is not ready:\n{self.end_of_log()}"
            time.sleep(0.05)

    def end_of_log(self) -> str:
        """What it wrote last."""
        return (self.data_dir / "qdrant.log").read_text(errors="replace")[-_LOG_BYTES:]

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """SIGTERM, if it was started; returns the exit code, 0 if a signal ended it."""
        if self._process is None:
            return 0
        self._process.terminate()
        return max(0, self._process.wait(STOP_SECONDS))

    def client(self) -> closing[QdrantClient]:
        """A blocking client for a `with` block."""
        return closing(connect(self.port))

    def _environment(self) -> dict[str, str]:
        settings = {
            "SERVICE__HOST": "127.0.0.1",
            "SERVICE__HTTP_PORT": self._http_port,
            "SERVICE__GRPC_PORT": self.port,
            "STORAGE__STORAGE_PATH": self.data_dir / "storage",
            "STORAGE__SNAPSHOTS_PATH": self.data_dir / "snapshots",
            "TELEMETRY_DISABLED": "true",
        }
        if API_KEY:
            settings["SERVICE__API_KEY"] = API_KEY
        if self._is_strict:
            settings["STORAGE__COLLECTION__STRICT_MODE__ENABLED"] = "true"
            for kind in ("RETRIEVE", "UPDATE"):
                settings[f"STORAGE__COLLECTION__STRICT_MODE__UNINDEXED_FILTERING_{kind}"] = "false"
        if self._is_clustered:
            settings |= {
                "CLUSTER__ENABLED": "true",
                "CLUSTER__P2P__PORT": self._internal_port,
                "STORAGE__COLLECTION__REPLICATION_FACTOR": COPIES,
                "STORAGE__COLLECTION__WRITE_CONSISTENCY_FACTOR": NEEDED,
            }
        own = {f"QDRANT__{name}": str(value) for name, value in settings.items()}
        initialized = {"QDRANT_INIT_FILE_PATH": str(self.data_dir / ".initialized")}
        given = {name: value for name, value in os.environ.items() if name.startswith("QDRANT__")}
        return {**os.environ, **own, **initialized, **given}


class Balancer:
    """Forwards TCP connections to the nodes that are ready, in turn. It runs in a thread of its own."""

    def __init__(self, nodes: Sequence[QdrantNode], port: int) -> None:
        self._nodes = nodes
        self._port = port
        self._ready: list[QdrantNode] = []
        self._turn = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="balancer", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def close(self) -> None:
        """Stop listening and cut all connections."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        await self._probe()
        self._following = asyncio.create_task(self._follow())

    async def _stop(self) -> None:
        self._server.close()
        tasks = [self._following, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_SECONDS)
            await self._probe()

    async def _probe(self) -> None:
        ready = await asyncio.gather(*(asyncio.to_thread(node.is_ready) for node in self._nodes))
        self._ready = [node for node, is_ready in zip(self._nodes, ready, strict=True) if is_ready]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            for _ in range(len(self._ready)):
                self._turn += 1
                node = self._ready[self._turn % len(self._ready)]
                with suppress(OSError):
                    upstream = await asyncio.open_connection("127.0.0.1", node.port)
                    await join_streams((reader, writer), upstream)
                    return
        finally:
            writer.close()


_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def join_streams(client: _Streams, node: _Streams) -> None:
    """Copy in both directions until one of them ends. The connection to the node is closed."""
    copies = [
        asyncio.create_task(_copy(client[0], node[1])),
        asyncio.create_task(_copy(node[0], client[1])),
    ]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for copy in copies:
            copy.cancel()
        node[1].close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()


class QdrantCluster:
    """Nodes of the real server behind a balancer. Single nodes may be killed and started."""

    def __init__(self, data_dir: Path, count: int, *, is_strict: bool = False) -> None:
        first = QdrantNode(data_dir / "node-1", is_strict=is_strict, is_clustered=True)
        others = (
            QdrantNode(
                data_dir / f"node-{number}",
                is_strict=is_strict,
                is_clustered=True,
                bootstrap=first.internal_address,
            )
            for number in range(2, count + 1)
        )
        self.nodes: Sequence[QdrantNode] = [first, *others]
        self.port = any_free()
        self._balancer: Balancer | None = None
        self._is_formed = False

    @property
    def pid(self) -> int:
        """Of the first node."""
        return self.nodes[0].pid

    def start(self) -> None:
        """Start all nodes and wait until they are ready."""
        for node in self.nodes:
            node.launch()
            # The first time each joins those before it. Later none is ready without a majority.
            if not self._is_formed:
                node.wait_until_ready()
        for node in self.nodes:
            node.wait_until_ready()
        self._is_formed = True
        if self._balancer is None:
            self._balancer = Balancer(self.nodes, self.port)

    def kill(self) -> None:
        """SIGKILL all nodes."""
        for node in self.nodes:
            node.kill()

    def stop(self) -> int:
        """SIGTERM all nodes and stop the balancer; returns the highest exit code."""
        if self._balancer is not None:
            self._balancer.close()
            self._balancer = None
        return max([node.stop() for node in self.nodes])


@dataclass(frozen=True)
class RealQdrant:
    """A real server that runs.

    Attributes:
        server: its process or processes; None if somebody else runs them.
    """

    url: str
    server: QdrantNode | QdrantCluster | None = None

    @property
    def nodes(self) -> Sequence[QdrantNode]:
        """Its processes; none if somebody else runs them."""
        return self.server.nodes if self.server else []


def make_server(data_dir: Path, *, is_strict: bool = IS_STRICT) -> QdrantServer:
    """A server of the kind that the environment asks for, not started."""
    if BINARY:
        return _make_real_server(data_dir, is_strict)
    return EdgeProcess(data_dir, is_strict=is_strict)


@contextmanager
def running_qdrant(data_dir: Path, *, is_strict: bool = IS_STRICT) -> Iterator[str]:
    """The URL of a server that runs: the one that somebody else runs, or one of its own."""
    if URL:
        with _borrowed():
            yield URL
        return
    server = make_server(data_dir, is_strict=is_strict)
    with _running(server):
        yield f"http://127.0.0.1:{server.port}"


@contextmanager
def running_real_qdrant(data_dir: Path) -> Iterator[RealQdrant | None]:
    """The real server that the environment asks for; None if it asks for the embedded one.

    For stacks of processes, which start the embedded one themselves.
    """
    if URL:
        with _borrowed():
            yield RealQdrant(URL)
    elif BINARY:
        server = _make_real_server(data_dir, IS_STRICT)
        with _running(server):
            yield RealQdrant(f"http://127.0.0.1:{server.port}", server)
    else:
        yield None


def address_of(url: str) -> tuple[str, int]:
    """Host and gRPC port."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or _GRPC_PORT


def connect_to(url: str) -> closing[QdrantClient]:
    """A blocking client with the key of the environment, for a `with` block."""
    host, port = address_of(url)
    return closing(connect(port, host))


@pytest.fixture(scope="session")
def qdrant_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that all tests of a run share."""
    with running_qdrant(tmp_path_factory.mktemp("qdrant")) as url:
        yield url


@pytest.fixture
def own_qdrant(tmp_path: Path) -> Iterator[QdrantServer]:
    """A server of the test's own, to be stopped, killed and started at will."""
    if URL:
        pytest.skip(NOT_OURS)
    server = make_server(tmp_path / "qdrant")
    server.start()
    yield server
    server.kill()
    # A cluster has a balancer, too.
    server.stop()


def _make_real_server(data_dir: Path, is_strict: bool) -> QdrantNode | QdrantCluster:
    if NODES > 1:
        return QdrantCluster(data_dir, NODES, is_strict=is_strict)
    return QdrantNode(data_dir, is_strict=is_strict)


@contextmanager
def _running(server: QdrantServer) -> Iterator[None]:
    try:
        server.start()
        yield
    except BaseException:
        server.stop()
        raise
    assert server.stop() == 0


@contextmanager
def _borrowed() -> Iterator[None]:
    """The server that somebody else runs is empty at the begin and at the end."""
    _require_empty()
    _delete_collections()
    try:
        yield
    finally:
        _delete_collections()


# Once in a run: later collections are those of tests.
@functools.cache
def _require_empty() -> None:
    with connect_to(URL) as client:
        names = [one.name for one in client.get_collections().collections]
    assert not names, f"TEXTMATCH_QDRANT_URL: {URL} must be empty, and has the collections {', '.join(names)}"


def _delete_collections() -> None:
    with connect_to(URL) as client:
        for one in client.get_collections().collections:
            client.delete_collection(one.name)
