"""Run a process until a signal, and return unused memory after start-up."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import sys
from collections.abc import Coroutine
from typing import Any


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
