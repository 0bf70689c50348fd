"""`textmatch up` and `textmatch down`: the whole stack on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from standalone import settings
from standalone.encoder_placement import plan_encoders
from standalone.external_stores import wait_for_stores
from standalone.stack import STACK_FILE, ExternalStores, choose_ports, process_specs
from standalone.supervisor import StackError, Supervisor, held_data_dir, holder_pid
from textmatch.runtime.settings import ClientTlsSettings, load

DEFAULT_DATA_DIR = Path(".textmatch")
_START_SECONDS = 180.0
_STOP_SECONDS = 90.0
_POLL_SECONDS = 0.1

DataDir = Annotated[Path, typer.Option("--data-dir", help="Folder of the data, the logs and stack.json.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return when everything is serving.")]
Encoders = Annotated[
    int, typer.Option("--encoders", min=1, help="Number of encoders; calls are balanced over them.")
]
QdrantUrl = Annotated[
    str,
    typer.Option(
        "--qdrant-url", metavar="URL", help="Use this Qdrant instead of an own one: http://host:6334."
    ),
]
RedisUrl = Annotated[
    str, typer.Option("--redis-url", metavar="URL", help="Use this Redis instead of an own one.")
]
Gpus = Annotated[int | None, typer.Option("--gpus", min=1, help="Number of GPUs; each gets one encoder.")]

_console = Console(stderr=True, highlight=False)


def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    detach: Detach = False,
    encoders: Encoders = 1,
    gpus: Gpus = None,
    qdrant_url: QdrantUrl = "",
    redis_url: RedisUrl = "",
) -> None:
    """Start Redis, Qdrant, encoder, matcher and worker on this machine; Ctrl-C stops them.

    A store whose URL is given is waited for, used and never stopped. TEXTMATCH_QDRANT_API_KEY is its key.
    """
    if gpus is not None and encoders > 1:
        raise StackError("--gpus starts one encoder on each GPU; omit --encoders")
    environment = settings.environment()
    plans = plan_encoders(encoders, gpus, environment)
    external = ExternalStores(redis_url, qdrant_url)
    if detach:
        chosen_options = ["--encoders", str(encoders)] if gpus is None else ["--gpus", str(gpus)]
        chosen_options += ["--qdrant-url", qdrant_url] if qdrant_url else []
        chosen_options += ["--redis-url", redis_url] if redis_url else []
        start_detached(data_dir, chosen_options)
        return
    with held_data_dir(data_dir):
        asyncio.run(wait_for_stores(external, environment, _report))
        chosen = choose_ports(len(plans))
        specs = process_specs(
            data_dir.resolve(), chosen, environment, load(ClientTlsSettings).client_tls(), plans, external
        )
        _report(f"starting the stack in {data_dir}; logs are in {data_dir / 'logs'}")
        supervisor = Supervisor(specs, chosen, data_dir, _report)
        asyncio.run(supervisor.run(lambda summary: _report(f"everything is serving: {summary}")))
        _report("everything is stopped")


def down(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Stop the stack that `textmatch up` started with this data folder."""
    pid = holder_pid(data_dir)
    if not pid:
        raise StackError(f"no stack runs in {data_dir}")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while holder_pid(data_dir):
        if time.monotonic() > deadline:
            raise StackError(f"the stack (pid {pid}) did not stop within {_STOP_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
    _report("everything is stopped")


def start_detached(data_dir: Path, options: Sequence[str] = ()) -> None:
    """Start the stack in the background; returns when everything is serving.

    Args:
        options: further options of `up`.

    Raises:
        StackError: it did not start; the message has its log.
    """
    if pid := holder_pid(data_dir):
        raise StackError(f"{data_dir} is in use by another stack (pid {pid})")
    log_path = data_dir / "logs" / "supervisor.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    # A killed supervisor does not remove its stack file.
    (data_dir / STACK_FILE).unlink(missing_ok=True)
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 -- our own module
            [sys.executable, "-m", "standalone", "up", "--data-dir", str(data_dir), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_SECONDS
    while not (data_dir / STACK_FILE).exists():
        if process.poll() is not None:
            raise StackError(
                log_path.read_text().strip() or f"the stack ended with code {process.returncode}"
            )
        if time.monotonic() > deadline:
            process.terminate()
            last_line = (log_path.read_text().strip().splitlines() or [""])[-1]
            raise StackError(
                f"the stack was not serving within {_START_SECONDS:.0f} s; see {log_path}: {last_line}"
            )
        time.sleep(_POLL_SECONDS)
    _console.print(log_path.read_text().strip(), markup=False)


def _report(line: str) -> None:
    _console.print(line, markup=False)
