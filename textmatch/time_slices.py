"""Long work in an event loop, in slices between which other calls run.

async for document in in_slices(request.documents):
    ...
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

Item = TypeVar("Item")

# Several calls may do long work at the same time, and each has a slice in a turn of the loop.
_SLICE_SECONDS = 0.003


async def in_slices(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Yield the items. Whenever the work on them has taken some milliseconds, other calls run first."""
    ends_at = time.perf_counter() + _SLICE_SECONDS
    for item in items:
        yield item
        if time.perf_counter() > ends_at:
            await asyncio.sleep(0)
            ends_at = time.perf_counter() + _SLICE_SECONDS
