"""The health checks that images and pods are given say what the processes say."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.certificates import Authority
from tests.support.kubernetes import KUBERNETES, ROOT
from tests.support.redis import free_port
from textmatch.runtime.metrics import serve_metrics
from textmatch.runtime.server import GrpcServer

COMPOSE = yaml.safe_load((ROOT / "deploy" / "docker" / "compose.yaml").read_text())
WORKER_PORT = "9103"


@pytest.fixture
async def server() -> AsyncIterator[tuple[GrpcServer, str]]:
    """A server of ours, and its port."""
    server = GrpcServer("127.0.0.1", 0, max_request_bytes=1_000_000)
    address = await server.start()
    yield server, address.rpartition(":")[2]
    await server.drain(grace_seconds=0)


@pytest.mark.parametrize("name", ["encoder", "matcher"])
async def test_a_server_is_healthy_while_it_serves(name: str, server: tuple[GrpcServer, str]):
    running, port = server
    check = COMPOSE["services"][name]["healthcheck"]["test"]
    command = [*check[2:-1], port]
    assert await _exit_code(command) != 0
    await running.set_serving(is_serving=True)
    assert await _exit_code(command) == 0
    await running.set_serving(is_serving=False)
    assert await _exit_code(command) != 0


async def test_over_mutual_tls_the_probe_takes_what_the_server_has(tmp_path: Path):
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    server = GrpcServer("127.0.0.1", 0, 1_000_000, tls=authority.server(pair, authority.file))
    port = (await server.start()).rpartition(":")[2]
    await server.set_serving(is_serving=True)
    environment = {
        "TEXTMATCH_TLS_CA": str(authority.file),
        "TEXTMATCH_TLS_CERT": str(pair.cert),
        "TEXTMATCH_TLS_KEY": str(pair.key),
    }
    command = ["-m", "textmatch.probe", port]
    assert await _exit_code(command, environment) == 0
    assert await _exit_code([*command, "textmatch.v1.NoSuchService"], environment) == 1
    assert await _exit_code(command) == 1
    only_trusting = {"TEXTMATCH_TLS_CA": str(authority.file)}
    assert await _exit_code(command, only_trusting) == 1
    await server.drain(grace_seconds=0)
    assert await _exit_code(command, environment) == 1


async def test_a_worker_is_ready_while_it_takes_messages():
    problem = "not connected to Redis"
    port = str(free_port())
    serve_metrics("127.0.0.1", int(port), {"/ready": lambda: problem, "/live": lambda: ""})
    check = COMPOSE["services"]["worker"]["healthcheck"]["test"][2:]
    command = [part.replace(WORKER_PORT, port) for part in check]
    assert await _exit_code(command) != 0
    problem = ""
    assert await _exit_code(command) == 0
    probes = {kind: probe["httpGet"]["path"] for kind, probe in _probes_of_the_worker().items()}
    assert probes == {"startupProbe": "/metrics", "readinessProbe": "/ready", "livenessProbe": "/live"}


def _probes_of_the_worker() -> dict[str, Any]:
    documents: list[dict[str, Any]] = list(
        yaml.safe_load_all((KUBERNETES / "base" / "worker.yaml").read_text())
    )
    [deployment] = [document for document in documents if document["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return {kind: probe for kind, probe in container.items() if kind.endswith("Probe")}


async def _exit_code(arguments: list[str], variables: Mapping[str, str] | None = None) -> int:
    """Of the Python that runs the tests, which has what the images have."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env={**os.environ, **(variables or {})}, stderr=asyncio.subprocess.DEVNULL
    )
    return await asyncio.wait_for(process.wait(), timeout=60)
