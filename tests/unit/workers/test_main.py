"""What a worker says when it cannot start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest


def run_worker(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers"],
        env={
            **os.environ,
            "TEXTMATCH_LOG_LEVEL": "ERROR",
            "TEXTMATCH_WORKER_METRICS_PORT": "0",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TEXTMATCH_WORKER_CONCURRENCY", "0"),
        ("TEXTMATCH_REDIS_URL", "example.org"),
        ("TEXTMATCH_QDRANT_URL", "example.org"),
    ],
)
def test_a_bad_setting_is_one_clear_line(variable: str, value: str):
    ended = run_worker(**{variable: value})
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"worker: {variable}: is ")


def test_a_taken_metrics_port_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run_worker(TEXTMATCH_WORKER_METRICS_PORT=str(taken.getsockname()[1]))
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "in use" in line
