"""Asking a second replica when the first is slow to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.matcher import metrics

Answer = TypeVar("Answer")


async def hedged(call: Callable[[], Awaitable[Answer]], after_seconds: float) -> Answer:
    """The first answer of one call or, if it takes longer than that, of two; 0 seconds means never two.

    Only for calls that may be repeated. An error counts when no other call is running.
    """
    first = asyncio.ensure_future(call())
    running = {first}
    try:
        if after_seconds > 0:
            done, _ = await asyncio.wait(running, timeout=after_seconds)
            if not done:
                metrics.HEDGED_TOTAL.inc()
                running.add(asyncio.ensure_future(call()))
        while True:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            good = [task for task in done if task.exception() is None]
            if good or not running:
                return (good or list(done))[0].result()
    finally:
        for task in running:
            task.cancel()
