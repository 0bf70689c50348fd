"""Whether a worker is ready (takes messages) and live (consumption progresses while messages wait).

    GET /ready    200, or 503 with the reason: no connection to Redis, a store fails, collections are paused
    GET /live     200, or 503: messages wait, and the worker has done nothing for too long

A worker that waits for Redis, Qdrant, the encoder or an operator is live: a restart would not help. A worker
that is connected, is allowed to take messages, and takes none although some wait is not: its consumer hangs,
which a broken connection may cause. Kubernetes, or the supervisor of `textmatch up`, restarts it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from textmatch.circuit_breaker import DependencyGuard
from textmatch.errors import DependencyUnavailable
from textmatch.queue.depth import QueueDepth
from textmatch.queue.worker_problems import WorkerProblems
from workers import metrics
from workers.pauses import Pauses

_INTERVAL_SECONDS = 2.0
# The event loop itself hangs.
_SILENT_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Progress:
    """When the worker last did something: connected, took, tried or put back a message. For any thread."""

    def __init__(self) -> None:
        self.is_connected = False
        self.held = 0
        self._at = time.monotonic()

    def note(self) -> None:
        """Something was done."""
        self._at = time.monotonic()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Around the handling of a message."""
        self.held += 1
        self.note()
        try:
            yield
        finally:
            self.held -= 1
            self.note()

    def connected(self, is_connected: bool) -> None:
        """The consumer has connected, or lost its connection."""
        self.is_connected = is_connected
        self.note()

    def seconds(self) -> float:
        """How long nothing was done."""
        return time.monotonic() - self._at


class WorkerHealth:
    """The health of one worker.

    Args:
        guards: of the stores.
        depth: of the queue.
        problems: where paused collections are shown to matchers.
        stall_seconds: how long a worker may do nothing while messages wait.
        busy_seconds: the same while it holds messages; longer than one attempt may take.
    """

    def __init__(
        self,
        name: str,
        progress: Progress,
        pauses: Pauses,
        guards: Sequence[DependencyGuard],
        depth: QueueDepth,
        problems: WorkerProblems,
        *,
        stall_seconds: float,
        busy_seconds: float,
    ) -> None:
        self._name = name
        self._progress = progress
        self._pauses = pauses
        self._guards = guards
        self._depth = depth
        self._problems = problems
        self._stall_seconds = stall_seconds
        self._busy_seconds = busy_seconds
        self._was_reported = False
        # Since when messages have waited; None while there are none, or Redis does not say.
        self._waiting_since: float | None = None
        self._checked_at = time.monotonic()

    def readiness(self) -> str:
        """Why the worker takes no messages; "" if it does. May be called in any thread."""
        if not self._progress.is_connected:
            return "not connected to Redis"
        for guard in self._guards:
            if guard.error is not None:
                return str(guard.error)
        if self._pauses.intake() is not None:
            return "; ".join(
                f"{name}: {problem.message}" for name, problem in self._pauses.problems().items()
            )
        return ""

    def liveness(self) -> str:
        """Why the worker must be restarted; "" if it need not. May be called in any thread."""
        now = time.monotonic()
        if now - self._checked_at > _SILENT_SECONDS:
            return f"the event loop has not run for {now - self._checked_at:.0f} s"
        since = self._waiting_since
        limit_seconds = self._busy_seconds if self._progress.held else self._stall_seconds
        if since is None or self._progress.seconds() < limit_seconds or now - since < limit_seconds:
            return ""
        if not self._progress.is_connected or self._pauses.intake() is not None:
            return ""
        return f"messages wait, and nothing was done for {self._progress.seconds():.0f} s"

    async def watch_forever(self) -> None:
        """Watch the queue and report pauses until cancelled."""
        metrics.READY.set_function(lambda: 0 if self.readiness() else 1)
        metrics.STALLED.set_function(lambda: 1 if self.liveness() else 0)
        while True:
            try:
                await self._check()
            except DependencyUnavailable as error:
                self._waiting_since = None
                _log.debug("queue not watched", extra={"error": str(error)})
            self._checked_at = time.monotonic()
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def _check(self) -> None:
        self._pauses.forget_unused()
        problems = list(self._pauses.problems().values())
        if problems or self._was_reported:
            await self._problems.report(self._name, problems)
            self._was_reported = bool(problems)
        if await self._depth.waiting():
            self._waiting_since = self._waiting_since or time.monotonic()
        else:
            self._waiting_since = None
