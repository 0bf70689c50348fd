"""The one-machine stack as a person runs it in a terminal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.encoder import make_tiny_bi_encoder
from tests.support.qdrant import QdrantServer, connect_to
from tests.support.redis import RedisServer
from tests.support.stack import wait_until


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`textmatch up` in the foreground, ready, with a tiny model."""
    make_tiny_bi_encoder(tmp_path / "model")
    environment = {
        **os.environ,
        "TEXTMATCH_BI_ENCODER": str(tmp_path / "model"),
        "TEXTMATCH_CROSS_ENCODER": "none",
    }
    command = [str(Path(sys.executable).with_name("textmatch")), "up", "--data-dir", str(tmp_path / "data")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until((tmp_path / "data" / "stack.json").exists, "the stack", seconds=120)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_stores_of_somebody_else_are_waited_for_used_and_never_stopped(
    tmp_path: Path, own_redis_server: RedisServer, own_qdrant: QdrantServer
):
    """The Qdrant starts after the stack, and both stores outlive it."""
    make_tiny_bi_encoder(tmp_path / "model")
    qdrant_url = f"http://127.0.0.1:{own_qdrant.port}"
    own_qdrant.kill()
    urls = ["--redis-url", own_redis_server.url, "--qdrant-url", qdrant_url]
    data = ["--data-dir", str(tmp_path / "data")]
    environment = {
        **os.environ,
        "TEXTMATCH_BI_ENCODER": str(tmp_path / "model"),
        "TEXTMATCH_CROSS_ENCODER": "none",
    }
    textmatch = str(Path(sys.executable).with_name("textmatch"))
    log = (tmp_path / "up.log").open("w")
    up = subprocess.Popen([textmatch, "up", *data, *urls], env=environment, stderr=log)
    try:
        log_path = tmp_path / "up.log"
        wait_until(
            lambda: f"waiting for Qdrant at {qdrant_url}: Qdrant does not answer" in log_path.read_text(),
            "what is missing",
        )
        own_qdrant.start()
        wait_until((tmp_path / "data" / "stack.json").exists, "the stack", seconds=120)
        written = stack_file(tmp_path)
        assert (written["redis_url"], written["qdrant_url"]) == (urls[1], urls[3])
        assert [process["name"] for process in written["processes"]] == [
            "encoder",
            "matcher",
            "gateway",
            "worker",
        ]
        (tmp_path / "documents.jsonl").write_text('{"id": "a", "text": "stores of somebody else"}\n')
        command = [textmatch, "ingest", str(tmp_path / "documents.jsonl"), "--wait", *data]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0
        with own_redis_server.client() as client:
            assert client.ping()
        with connect_to(qdrant_url) as client:
            assert len(client.get_collections().collections) == 1
    finally:
        up.kill()
        up.wait()
        log.close()


def stack_file(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "data" / "stack.json").read_text())
    return content


def child_pids(tmp_path: Path) -> list[int]:
    return [process["pid"] for process in stack_file(tmp_path)["processes"]]


def are_gone(pids: list[int]) -> bool:
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids
    )


def test_ctrl_c_stops_everything(terminal: subprocess.Popen[str], tmp_path: Path):
    pids = child_pids(tmp_path)
    assert not are_gone(pids)
    terminal.send_signal(signal.SIGINT)
    _, printed = terminal.communicate(timeout=60)
    assert terminal.returncode == 0
    assert printed.rstrip().endswith("everything is stopped")
    assert "Traceback" not in printed
    assert are_gone(pids)
    assert not (tmp_path / "data" / "stack.json").exists()


def test_a_killed_supervisor_leaves_nothing_behind(terminal: subprocess.Popen[str], tmp_path: Path):
    pids = child_pids(tmp_path)
    terminal.kill()
    wait_until(lambda: are_gone(pids), "the processes to end", seconds=30)
    assert terminal.poll() is not None


@pytest.fixture
def taken_port() -> Iterator[int]:
    """The matcher's default port, bound by the test unless another process has it."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", 50052))
            listener.listen()
        except OSError:
            pass
        yield 50052


def test_where_a_port_is_taken_another_one_is_used(
    taken_port: int, terminal: subprocess.Popen[str], tmp_path: Path
):
    assert stack_file(tmp_path)["matcher"] != f"127.0.0.1:{taken_port}"
