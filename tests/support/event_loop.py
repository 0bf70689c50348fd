"""How long an event loop is kept from its other tasks.

Measured as the processor time that the loop's thread takes between two turns of a ticking task. In contrast
to the time on the clock, it does not depend on what else the machine runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from statistics import median

# The longest pause of the best of some tries: what the code takes and not what disturbs it.
TRIES = 3
# Work that takes 10 ms where limits were measured. A slower machine has a longer limit.
REFERENCE_SECONDS = 0.01


@asynccontextmanager
async def longest_pause() -> AsyncIterator[Callable[[], float]]:
    """Seconds of processor time that the loop's thread took at most between two turns of a task."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            started = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - started)

    ticking = asyncio.ensure_future(tick())
    try:
        yield lambda: longest
    finally:
        ticking.cancel()


def slowness() -> float:
    """How much slower this machine is now than where limits were measured, at least 1."""

    def work() -> float:
        started = time.thread_time()
        sum(number * number for number in range(160_000))
        return time.thread_time() - started

    return max(1.0, median(work() for _ in range(9)) / REFERENCE_SECONDS)


async def pause_of(send: Callable[[], Awaitable[str]], enough_seconds: float) -> tuple[float, str]:
    """The longest pause while a request is answered, of the best of some tries, and the answer.

    The first try with a pause below `enough_seconds` is the last.
    """
    best = float("inf")
    for _ in range(TRIES):
        async with longest_pause() as pause:
            answer = await send()
            best = min(best, pause())
        if best < enough_seconds:
            break
    return best, answer
