"""Giving back what starting, and loading and releasing models, leaves over."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back_memory() -> None:
    """Collect what is left in reference cycles, and let glibc return freed memory, which it would keep.

    What is left then stays: later collections need not walk through it, which takes up to 0.3 s.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries do not have it
        if trim is not None:
            trim(0)
