"""A clock that shows another time of day, as on a machine whose date is wrong.

    clock = WrongClock()
    clock.install(monkeypatch.setattr)
    clock.shift_seconds = -3_600                           an hour ago, until the end of the test

The clock that waits are measured with (`time.monotonic`) is the right one.

gRPC keeps the right time too. It turns a timeout into a time of day in Python, and compares that in C with
the clock of the machine, which is not replaced: a call an hour ago would end before it began. On a machine
whose date is wrong, both are the same clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_EXEMPT = "grpc"


class WrongClock:
    """Replaces the functions of `time` that say what time it is."""

    def __init__(self) -> None:
        self.shift_seconds = 0.0
        self._real_ns = time.time_ns

    def install(self, replace: Callable[[object, str, object], None] = setattr) -> None:
        """From now on, this process has this clock."""
        replace(time, "time_ns", lambda: self._now_ns(sys._getframe(1).f_globals))
        replace(time, "time", lambda: self._now_ns(sys._getframe(1).f_globals) / 1e9)

    def shift(self) -> float:
        """By how many seconds it is wrong now."""
        return self.shift_seconds

    def _now_ns(self, caller: dict[str, object]) -> int:
        if str(caller.get("__name__")).partition(".")[0] == _EXEMPT:
            return self._real_ns()
        return self._real_ns() + int(self.shift() * 1e9)
