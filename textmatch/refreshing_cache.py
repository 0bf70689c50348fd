"""A cached value that is refreshed in the background before it expires."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from textmatch.errors import TextMatchError

Value = TypeVar("Value")


class RefreshingCache(Generic[Value]):
    """A cached value that is refreshed in the background before it expires.

    Args:
        read: reads the value. It must raise TextMatchErrors only.
        max_age_seconds: older values are not returned. The background refresh starts at half this age.
    """

    def __init__(self, read: Callable[[], Awaitable[Value]], max_age_seconds: float) -> None:
        self._read = read
        self._max_age_seconds = max_age_seconds
        self._cached: tuple[float, Value] | None = None
        self._refresh_task: asyncio.Task[None] | None = None

    async def get(self) -> Value:
        """The value, at most `max_age_seconds` old.

        Raises:
            TextMatchError: there is no such value, and it cannot be read.
        """
        if self._cached is None:
            return await self.refresh()
        read_at, value = self._cached
        age_seconds = time.monotonic() - read_at
        if age_seconds >= self._max_age_seconds:
            return await self.refresh()
        if age_seconds >= self._max_age_seconds / 2 and self._refresh_task is None:
            self._refresh_task = asyncio.create_task(self._refresh_in_background())
        return value

    async def refresh(self) -> Value:
        """Read the value now.

        Raises:
            TextMatchError: it cannot be read.
        """
        started = time.monotonic()
        value = await self._read()
        # A read that started later may have finished earlier.
        if self._cached is None or self._cached[0] <= started:
            self._cached = (started, value)
        return value

    def forget(self) -> None:
        """Drop the cached value and stop a background refresh."""
        self._cached = None
        if self._refresh_task is not None:
            self._refresh_task.cancel()
            self._refresh_task = None

    async def _refresh_in_background(self) -> None:
        # The caller that finds the value expired gets the error.
        with suppress(TextMatchError):
            await self.refresh()
        self._refresh_task = None
