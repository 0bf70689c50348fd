"""Run a module with a clock that is wrong and jumps.

    python -m tests.chaos.skewed_clock SEED MODULE [ARGUMENT ...]

`time.time` is shifted by up to an hour, to either side, and jumps to another shift every few seconds. The
clock that waits are measured with (`time.monotonic`) is the right one, as on a machine whose date is
changed.
"""

from __future__ import annotations

import random
import runpy
import sys
import time

_MAX_SHIFT_SECONDS = 3_600.0
_SHORTEST_SECONDS = 0.2
_LONGEST_SECONDS = 5.0


class SkewedClock:
    """Replaces the functions of `time` that say what time it is."""

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)
        self._time_ns = time.time_ns
        self._jump_at = 0.0
        self._shift_ns = 0

    def install(self) -> None:
        """From now on, this process has this clock."""
        time.time_ns = self.time_ns  # type: ignore[assignment]
        time.time = self.time  # type: ignore[assignment]

    def time(self) -> float:
        """As `time.time`."""
        return self.time_ns() / 1e9

    def time_ns(self) -> int:
        """As `time.time_ns`."""
        now = time.monotonic()
        if now >= self._jump_at:
            self._jump_at = now + self._generator.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS)
            shift = self._generator.uniform(-_MAX_SHIFT_SECONDS, _MAX_SHIFT_SECONDS)
            self._shift_ns = int(shift * 1e9)
        return self._time_ns() + self._shift_ns


if __name__ == "__main__":
    SkewedClock(int(sys.argv[1])).install()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
