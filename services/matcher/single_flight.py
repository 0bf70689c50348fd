"""Identical work that is asked for while it is being done is done once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Answer = TypeVar("Answer")

# Who has more than twice as much time as running work was given can hope for a better answer.
_MIN_TIME_SHARE = 0.5


@dataclass
class _Flight(Generic[Answer]):
    task: asyncio.Task[Answer]
    deadline: float
    waiting: int = 0


class SingleFlight(Generic[Answer]):
    """Work goes on as long as anybody waits for it: a caller who leaves takes nothing from the others."""

    def __init__(self, on_shared: Callable[[], None]) -> None:
        self._on_shared = on_shared
        self._flights: dict[Hashable, _Flight[Answer]] = {}

    async def run(self, key: Hashable, deadline: float, start: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of the work with this key, started if none runs that fits the deadline.

        Args:
            deadline: by `time.monotonic()`; work that may end later is not waited for.
        """
        flight = self._flights.get(key)
        if flight is None or not _fits(flight.deadline, deadline):
            flight = _Flight(asyncio.ensure_future(start()), deadline)
            self._flights[key] = flight
        else:
            self._on_shared()
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if flight.waiting == 0:
                flight.task.cancel()
            if self._flights.get(key) is flight and (flight.task.done() or flight.waiting == 0):
                del self._flights[key]


def _fits(flight_deadline: float, own_deadline: float) -> bool:
    now = time.monotonic()
    return (own_deadline - now) * _MIN_TIME_SHARE <= flight_deadline - now <= own_deadline - now
