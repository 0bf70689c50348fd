"""Start a process, run it until a signal, and return unused memory after start-up."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from textmatch.errors import TextMatchError
from textmatch.runtime.logs import set_up_logs
from textmatch.runtime.settings import ProcessSettings, describe, load
from textmatch.runtime.tracing import set_up_tracing

Result = TypeVar("Result")
Settings = TypeVar("Settings", bound=ProcessSettings)

_log = logging.getLogger(__name__)

# Threads that `call_in_thread` started and that still run.
_running: set[threading.Thread] = set()


class PortTaken(TextMatchError):
    """Another process already listens on the address."""


def run_service(
    name: str, settings_class: type[Settings], serve: Callable[[Settings], Coroutine[Any, Any, None]]
) -> int:
    """Read the settings, set up logs and traces, and run `serve`.

    Returns:
        The exit status. An error that ends the process is printed in one line.
    """
    try:
        settings = load(settings_class)
        set_up_logs(name, settings.log_level, settings.log_style)
        set_up_tracing(name, settings.otlp_endpoint, settings.trace_sample_ratio)
        _log.info("starting", extra={"settings": describe(settings)})
        asyncio.run(serve(settings))
    except (TextMatchError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


async def run_until_stopped(*parts: Coroutine[Any, Any, None]) -> None:
    """Run until SIGTERM or SIGINT, or until one of the parts ends; then cancel the others.

    Raises:
        Exception: the error of the part that ended.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopped.set)
    tasks = [asyncio.ensure_future(part) for part in parts]
    signalled = asyncio.ensure_future(stopped.wait())
    done, pending = await asyncio.wait([signalled, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


async def call_in_thread(function: Callable[[], Result]) -> Result:
    """Call a function that blocks in a thread of its own; if cancelled, do not wait for it.

    `asyncio.to_thread` makes the end of the event loop wait for the function. See `end_process`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        set_outcome: Callable[[Any], None]
        outcome: Any
        try:
            set_outcome, outcome = future.set_result, function()
        except BaseException as error:  # noqa: BLE001 -- handed to the caller
            set_outcome, outcome = future.set_exception, error
        _running.discard(thread)
        # The loop is closed if the process ends.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, set_outcome, outcome)

    thread = threading.Thread(target=run, name=getattr(function, "__name__", "call"), daemon=True)
    _running.add(thread)
    thread.start()
    return await future


def end_process(status: int) -> int:
    """Return the exit status, or end at once if a function of `call_in_thread` still runs.

    Python would wait for native code that needs minutes, or never ends.
    """
    if _running:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def trim_heap() -> None:
    """Free reference cycles and let glibc return freed memory to the system.

    Surviving objects are excluded from later garbage collections, which would take up to 0.3 s.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
