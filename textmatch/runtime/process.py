"""How a process ends: on SIGTERM or SIGINT, or with the first of its parts that ends.

Giving back what starting, and loading and releasing models, leaves over.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import sys
from collections.abc import Coroutine
from typing import Any


async def run_until_stopped(*parts: Coroutine[Any, Any, None]) -> None:
    """Run the parts until a signal comes or one of them ends; then cancel the others.

    Raises:
        Exception: whatever the part that ended raised.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopped.set)
    tasks = [asyncio.ensure_future(part) for part in parts]
    waiting = asyncio.ensure_future(stopped.wait())
    done, pending = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


def trim_heap() -> None:
    """Collect what is left in reference cycles, and let glibc return freed memory, which it would keep.

    What is left then stays: later collections need not walk through it, which takes up to 0.3 s.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries do not have it
        if trim is not None:
            trim(0)
