"""Something that is read now and then, without letting callers wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from textmatch.errors import TextMatchError

Value = TypeVar("Value")


class Renewed(Generic[Value]):
    """Gives out what was read last, and reads it anew meanwhile once that is half as old as it may become.

    Args:
        read: reads it, and raises only TextMatchErrors.
        max_age_seconds: what is older is not given out.
    """

    def __init__(self, read: Callable[[], Awaitable[Value]], max_age_seconds: float) -> None:
        self._read = read
        self._max_age_seconds = max_age_seconds
        self._known: tuple[float, Value] | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def get(self) -> Value:
        """What was read at most `max_age_seconds` ago.

        Raises:
            TextMatchError: there is no such thing, and it cannot be read.
        """
        if self._known is None:
            return await self.refresh()
        read_at, value = self._known
        age_seconds = time.monotonic() - read_at
        if age_seconds >= self._max_age_seconds:
            return await self.refresh()
        if age_seconds >= self._max_age_seconds / 2 and self._renewal is None:
            self._renewal = asyncio.create_task(self._renew())
        return value

    async def refresh(self) -> Value:
        """What is read now.

        Raises:
            TextMatchError: it cannot be read.
        """
        started = time.monotonic()
        value = await self._read()
        # A reading that started later knows better.
        if self._known is None or self._known[0] <= started:
            self._known = (started, value)
        return value

    def forget(self) -> None:
        """What was read before now is not given out."""
        self._known = None
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None

    async def _renew(self) -> None:
        # Who needs it once it is too old is told.
        with suppress(TextMatchError):
            await self.refresh()
        self._renewal = None
