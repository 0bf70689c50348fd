"""The processes of the stack, each of which can be killed and started again.

Matchers and workers have clocks that are wrong and jump, each in another way (skewed_clock.py). A cluster of
Qdrant, which tests/support/qdrant.py starts, is killed node by node.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from standalone.stack import (
    ExternalStores,
    ProcessSpec,
    StackPorts,
    any_free,
    choose_ports,
    grpc_serving,
    http_answers,
    process_specs,
)
from tests.chaos.program import QDRANT
from tests.support.qdrant import BINARY, NODES, URL, QdrantNode, address_of, running_real_qdrant
from textmatch.client import TextMatchClient

_READY_SECONDS = 120.0
_STOP_SECONDS = 30.0
_LOG_BYTES = 3_000


class Victim:
    """One process, started as `textmatch up` starts it."""

    def __init__(self, spec: ProcessSpec, log_path: Path) -> None:
        self.name = spec.name
        self._spec = spec
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return at once."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._spec.command, env=dict(self._spec.environment), stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended by itself:\n{self.end_of_log()}"
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM; SIGKILL if that does not help."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_until_ready(self) -> None:
        """Poll its health.

        Raises:
            AssertionError: it ended, or is not ready in time.
        """
        asyncio.run(self._wait_until_ready())

    def end_of_log(self) -> str:
        """What it wrote last."""
        return self._log_path.read_text(errors="replace")[-_LOG_BYTES:]

    async def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _READY_SECONDS
        while not await self._spec.is_ready():
            assert self._process.poll() is None, f"{self.name} ended by itself:\n{self.end_of_log()}"
            assert time.monotonic() < deadline, f"{self.name} is not ready:\n{self.end_of_log()}"
            await asyncio.sleep(0.05)


class NodeVictim:
    """A node of a real Qdrant."""

    def __init__(self, name: str, node: QdrantNode, nodes: Sequence[QdrantNode]) -> None:
        self.name = name
        self._node = node
        self._nodes = nodes

    def start(self) -> None:
        """Start it and return at once."""
        self._node.launch()

    def kill(self) -> None:
        """SIGKILL."""
        self._node.kill()

    def stop(self) -> None:
        """SIGTERM."""
        self._node.stop()

    def wait_until_ready(self) -> None:
        """Wait for all nodes: while one is away, no other may be killed.

        Raises:
            AssertionError: one of them ended, or is not ready in time.
        """
        for node in self._nodes:
            node.wait_until_ready()

    def end_of_log(self) -> str:
        """What it wrote last."""
        return self._node.end_of_log()


@dataclass(frozen=True)
class Victims:
    """All processes by name: two matchers, two workers, and one of everything else.

    Attributes:
        qdrant: host and gRPC port.
        qdrant_nodes: those of each node of a cluster; empty if there is no cluster.
    """

    by_name: Mapping[str, Victim | NodeVictim]
    ports: StackPorts
    matcher_target: str
    qdrant: tuple[str, int]
    qdrant_nodes: Sequence[tuple[str, int]]

    def client(self) -> TextMatchClient:
        """A client of both matchers, with deadlines that suit servers that vanish."""
        addresses = (self.matcher_target, self.ports.encoder_target)
        return TextMatchClient(*addresses, timeout_seconds=20.0, bulk_timeout_seconds=20.0)

    def kill(self, names: Sequence[str], down_seconds: float) -> None:
        """SIGKILL these together, and start them again after a while; returns before they are ready."""
        victims = [self.by_name[name] for name in names]
        for victim in victims:
            victim.wait_until_ready()
        for victim in victims:
            victim.kill()
        time.sleep(down_seconds)
        for victim in victims:
            victim.start()

    def wait_until_ready(self) -> None:
        """Wait for all of them."""
        for victim in self.by_name.values():
            victim.wait_until_ready()


def qdrant_names() -> tuple[str, ...]:
    """The names of the processes of Qdrant that can be killed."""
    if URL:
        return ()
    is_cluster = bool(BINARY) and NODES > 1
    return tuple(f"{QDRANT}-{number}" for number in range(1, NODES + 1)) if is_cluster else (QDRANT,)


@contextmanager
def running_victims(directory: Path, settings: Mapping[str, str]) -> Iterator[Victims]:
    """Start everything and wait until it serves; stop it at the end, and show the logs after a failure."""
    ports = choose_ports(use_defaults=False)
    with running_real_qdrant(directory / "qdrant") as real:
        external = ExternalStores(qdrant_url=real.url if real else "")
        environment = {**os.environ, **settings}
        specs = {spec.name: spec for spec in process_specs(directory, ports, environment, external=external)}
        others = [spec for name, spec in specs.items() if name not in {"matcher", "worker", "gateway"}]
        matchers = [_matcher(specs["matcher"], number) for number in (1, 2)]
        workers = [_worker(specs["worker"], number) for number in (1, 2)]
        started = [Victim(spec, directory / f"{spec.name}.log") for spec in [*others, *matchers, *workers]]
        nodes = real.nodes if real else []
        names = qdrant_names() if nodes else ()
        node_victims = [NodeVictim(name, node, nodes) for name, node in zip(names, nodes, strict=True)]
        victims = Victims(
            {victim.name: victim for victim in [*node_victims, *started]},
            ports,
            "ipv4:" + ",".join(spec.address for spec in matchers),
            address_of(real.url if real else f"http://127.0.0.1:{ports.qdrant}"),
            [("127.0.0.1", node.port) for node in nodes] if len(nodes) > 1 else [],
        )
        try:
            for victim in started:
                victim.start()
            victims.wait_until_ready()
            yield victims
        except BaseException:
            for victim in victims.by_name.values():
                print(f"--- {victim.name}\n{victim.end_of_log()}")
            raise
        finally:
            for victim in reversed(victims.by_name.values()):
                victim.stop()


def _matcher(matcher: ProcessSpec, number: int) -> ProcessSpec:
    port = any_free()
    ports = {"TEXTMATCH_MATCHER_PORT": str(port), "TEXTMATCH_MATCHER_METRICS_PORT": str(any_free())}
    return replace(
        matcher,
        name=f"matcher-{number}",
        command=_skewed(matcher.command, seed=number),
        environment={**matcher.environment, **ports},
        address=f"127.0.0.1:{port}",
        is_ready=grpc_serving(f"127.0.0.1:{port}"),
    )


def _skewed(command: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """A command that runs a module, with a clock that is wrong."""
    python, _, *module = command
    return (python, "-m", "tests.chaos.skewed_clock", str(seed), *module)


def _worker(worker: ProcessSpec, number: int) -> ProcessSpec:
    port = any_free()
    return replace(
        worker,
        name=f"worker-{number}",
        command=_skewed(worker.command, seed=100 + number),
        environment={**worker.environment, "TEXTMATCH_WORKER_METRICS_PORT": str(port)},
        is_ready=http_answers(f"http://127.0.0.1:{port}/ready"),
    )
