"""The encoder as a process: start, health, metrics, signals, exit status."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.encoder import is_serving, spawn_encoder, wait_until_serving
from tests.support.redis import free_port
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

# The real process with models without weights: it starts at once, and a test can break it.
_WITHOUT_TORCH = """
import sys
from services.encoder import __main__
from tests.support.length_model import loaded_length_model
__main__.load_models = lambda settings: loaded_length_model()
sys.exit(__main__.main())
"""

# The real process, whose models take a minute to load in native code.
_LOADING = """
import sys, time
from services.encoder import __main__
__main__.load_models = lambda settings: time.sleep(60)
sys.exit(__main__.main())
"""


@pytest.fixture
def spawned() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are killed at the end if they are still running."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def _spawn_without_torch(port: int) -> subprocess.Popen[str]:
    environment = {
        "TEXTMATCH_ENCODER_PORT": str(port),
        "TEXTMATCH_CROSS_ENCODER": "none",
        "TEXTMATCH_LOG_LEVEL": "ERROR",
    }
    return spawn_encoder(environment, command=(sys.executable, "-c", _WITHOUT_TORCH))


def test_a_process_from_start_to_end(
    model_directories: dict[str, Path], spawned: list[subprocess.Popen[str]], tmp_path: Path
):
    port, metrics_port = free_port(), free_port()
    environment = {
        "TEXTMATCH_ENCODER_PORT": str(port),
        "TEXTMATCH_ENCODER_METRICS_PORT": str(metrics_port),
        "TEXTMATCH_BI_ENCODER": str(model_directories["plain"]),
        "TEXTMATCH_CROSS_ENCODER": str(model_directories["pairs"]),
        # From a cache it would serve at once.
        "TEXTMATCH_CACHE_DIR": str(tmp_path),
    }
    process = spawn_encoder(environment)
    spawned.append(process)
    address = f"127.0.0.1:{port}"
    with grpc.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        grpc.channel_ready_future(channel).result(timeout=60)
        assert not is_serving(address)
        with pytest.raises(grpc.RpcError) as too_early:
            stub.GetModels(pb.GetModelsRequest(), timeout=10)
        assert too_early.value.code() == grpc.StatusCode.UNAVAILABLE
        wait_until_serving(process, address)
        assert len(stub.GetModels(pb.GetModelsRequest()).models) == 2
        text = urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10).read().decode()
        assert 'textmatch_encoder_model_info{device="cpu"' in text
        assert "textmatch_encoder_device_memory_bytes{" not in text

        running = stub.Encode.future(pb.EncodeRequest(texts=["the cat sits"] * 1000))
        _wait_for_tokens(metrics_port)
        process.send_signal(signal.SIGTERM)
        assert len(running.result(timeout=60).token_counts) == 1000
    status, stderr = _end(process)
    assert (status, stderr) == (0, "")


def test_a_port_that_is_taken_is_one_clear_line(spawned: list[subprocess.Popen[str]]):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        spawned.append(spawn_encoder({"TEXTMATCH_ENCODER_PORT": str(port)}))
        status, stderr = _end(spawned[0])
    assert status == 1
    assert stderr.splitlines()[-1].startswith(
        f"encoder: cannot listen on 127.0.0.1:{port}; is the port in use?"
    )
    assert "Traceback" not in stderr


def test_a_metrics_port_that_is_taken_is_one_clear_line(spawned: list[subprocess.Popen[str]]):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ports = {
            "TEXTMATCH_ENCODER_PORT": str(free_port()),
            "TEXTMATCH_ENCODER_METRICS_PORT": str(listener.getsockname()[1]),
        }
        spawned.append(spawn_encoder(ports))
        status, stderr = _end(spawned[0])
    assert status == 1
    assert stderr.startswith("encoder: cannot serve metrics")
    assert len(stderr.splitlines()) == 1


def test_a_bad_setting_is_one_clear_line(spawned: list[subprocess.Popen[str]]):
    spawned.append(spawn_encoder({"TEXTMATCH_ENCODER_DTYPE": "int8"}))
    assert _end(spawned[0]) == (
        1,
        "encoder: TEXTMATCH_ENCODER_DTYPE: is 'int8'; it must be one of auto, float32, bfloat16, float16\n",
    )


def test_a_model_that_is_not_there_is_one_clear_line(spawned: list[subprocess.Popen[str]]):
    environment = {"TEXTMATCH_ENCODER_PORT": "0", "TEXTMATCH_BI_ENCODER": "no-such-model"}
    spawned.append(spawn_encoder(environment))
    status, stderr = _end(spawned[0])
    assert status == 1
    assert stderr.startswith('encoder: no model "no-such-model": there is no such directory')
    assert len(stderr.splitlines()) == 1


def test_the_process_ends_when_its_engine_breaks(spawned: list[subprocess.Popen[str]]):
    port = free_port()
    process = _spawn_without_torch(port)
    spawned.append(process)
    wait_until_serving(process, f"127.0.0.1:{port}")
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_retries", 0)]) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        assert len(stub.Encode(pb.EncodeRequest(texts=["fine"])).token_counts) == 1
        with pytest.raises(grpc.RpcError) as caught:
            stub.Encode(pb.EncodeRequest(texts=["break"]), timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    status, stderr = _end(process)
    assert status == 1
    assert stderr.splitlines()[-1] == "encoder: the engine broke: length fails on its sample too"


def test_a_running_call_ends_before_the_process_does(spawned: list[subprocess.Popen[str]]):
    port = free_port()
    process = _spawn_without_torch(port)
    spawned.append(process)
    wait_until_serving(process, f"127.0.0.1:{port}")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.EncoderServiceStub(channel)
        slow = stub.Encode.future(pb.EncodeRequest(texts=["slow"]))
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert len(slow.result(timeout=30).token_counts) == 1
    assert _end(process)[0] == 0


def test_a_process_that_is_loading_ends_at_once(spawned: list[subprocess.Popen[str]]):
    port = free_port()
    environment = {"TEXTMATCH_ENCODER_PORT": str(port), "TEXTMATCH_LOG_LEVEL": "ERROR"}
    process = spawn_encoder(environment, command=(sys.executable, "-c", _LOADING))
    spawned.append(process)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=60)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert _end(process) == (0, "")
    assert time.monotonic() - started < 40


def _wait_for_tokens(metrics_port: int) -> None:
    """Wait until the first batch is computed."""
    deadline = time.monotonic() + 30
    url = f"http://127.0.0.1:{metrics_port}/metrics"
    while time.monotonic() < deadline:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        if 'textmatch_encoder_tokens_total{lane="interactive"}' in text:
            return
        threading.Event().wait(0.01)
    raise AssertionError("the engine computed nothing")
