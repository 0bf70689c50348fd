"""Answers to a stream of requests: several worked on at a time, answered in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answer_in_order(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Response]],
    *,
    limit: int,
) -> AsyncIterator[Response]:
    """Yield one answer for each request, each as soon as it and all before it are ready.

    No more than `limit` requests are read ahead of the answers taken, so that a slow reader holds up its own
    stream and nothing else.
    """
    started: asyncio.Queue[asyncio.Future[Response] | None] = asyncio.Queue()
    places = asyncio.Semaphore(limit)

    async def read() -> None:
        try:
            await places.acquire()
            async for request in requests:
                started.put_nowait(asyncio.ensure_future(answer(request)))
                await places.acquire()
        finally:
            started.put_nowait(None)

    reader = asyncio.ensure_future(read())
    try:
        while (pending := await started.get()) is not None:
            yield await pending
            places.release()
        await reader
    finally:
        reader.cancel()
        while not started.empty():
            if (left := started.get_nowait()) is not None:
                left.cancel()
