"""Bulk work comes back when the encoder asks it to; somebody waits for interactive work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from textmatch.errors import Overloaded

Answer = TypeVar("Answer")

_SHORTEST_DELAY_SECONDS = 0.05


async def patiently(call: Callable[[], Awaitable[Answer]], *, deadline: float, is_bulk: bool) -> Answer:
    """What the call returns, called again after the delay that a refusal names while there is time for it.

    Raises:
        Overloaded: the work is not bulk, or there is no time left to wait.
    """
    while True:
        try:
            return await call()
        except Overloaded as error:
            delay_seconds = max(error.retry_delay_seconds or 0.0, _SHORTEST_DELAY_SECONDS)
            if not is_bulk or time.monotonic() + delay_seconds >= deadline:
                raise
            await asyncio.sleep(delay_seconds)
