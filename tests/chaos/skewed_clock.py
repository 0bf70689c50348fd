"""Run a module with a clock that is wrong and jumps.

    python -m tests.chaos.skewed_clock SEED MODULE [ARGUMENT ...]

`time.time` is shifted by up to an hour, to either side, and jumps to another shift every few seconds.
"""

from __future__ import annotations

import random
import runpy
import sys
import time

from tests.support.wrong_clock import WrongClock

_MAX_SHIFT_SECONDS = 3_600.0
_SHORTEST_SECONDS = 0.2
_LONGEST_SECONDS = 5.0


class SkewedClock(WrongClock):
    """A clock that jumps."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = random.Random(seed)
        self._jump_at = 0.0

    def shift(self) -> float:
        """By how many seconds it is wrong now."""
        now = time.monotonic()
        if now >= self._jump_at:
            self._jump_at = now + self._generator.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS)
            self.shift_seconds = self._generator.uniform(-_MAX_SHIFT_SECONDS, _MAX_SHIFT_SECONDS)
        return self.shift_seconds


if __name__ == "__main__":
    SkewedClock(int(sys.argv[1])).install()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
