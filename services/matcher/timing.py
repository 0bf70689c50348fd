"""How long the stages of a Match take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from services.matcher import metrics
from services.matcher.answers import Timings


@contextmanager
def timed(timings: Timings, stage: str, part: str = "") -> Iterator[None]:
    """Adds to the time of a stage; the metric has its parts apart."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        setattr(timings, f"{stage}_ms", getattr(timings, f"{stage}_ms") + seconds * 1e3)
        metrics.MATCH_STAGE_SECONDS.labels(part or stage).observe(seconds)
