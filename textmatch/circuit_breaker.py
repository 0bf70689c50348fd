"""Remember that something fails: callers fail at once, and one probe at a time finds out when it works again.

    closed ──failed──▶ open ──delay over──▶ one probe ──succeeded──▶ closed
                        ▲                       │
                        └────────failed─────────┘

`CircuitBreaker` lets a caller be the probe: a worker tries one batch, and the other batches wait.
`DependencyGuard` probes in the background, so that no caller's time is spent on it: a matcher asks Qdrant for
its aliases, and queries fail at once until the aliases come.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

from prometheus_client import Gauge

from textmatch.errors import DependencyUnavailable, StoreRefuses, TextMatchError, reason_name

# A call that takes longer may have no answer at all.
_SUSPICIOUS_SECONDS = 0.5
_PROBE_SECONDS = 1.5
# One probe may be late because the machine is busy.
_SILENT_PROBES = 2
_FIRST_PROBE_DELAY_SECONDS = 0.25
_LAST_PROBE_DELAY_SECONDS = 1.0
_WATCH_SECONDS = 5.0

_is_probe: ContextVar[bool] = ContextVar("is_probe", default=False)

_log = logging.getLogger(__name__)

DEPENDENCY_FAILING = Gauge(
    "textmatch_dependency_failing",
    "1 while calls to a store (qdrant, redis) fail at once, because it does not answer or refuses.",
    ["dependency", "reason"],
)


class CircuitBreaker:
    """Open from a failure until a probe succeeds. The delay between probes doubles with jitter."""

    def __init__(self, first_delay_seconds: float, max_delay_seconds: float) -> None:
        self._first_delay_seconds = first_delay_seconds
        self._max_delay_seconds = max_delay_seconds
        self._failures = 0
        self._probe_at = 0.0
        self._is_probing = False
        # The last failure; None while the breaker is closed.
        self.error: Exception | None = None

    @property
    def probe_at(self) -> float:
        """When the next probe may start, on the monotonic clock; infinite while one is running."""
        return float("inf") if self._is_probing else self._probe_at

    def admit(self) -> bool:
        """Whether the caller may go on. While the breaker is open, the admitted caller is the probe.

        The probe must call `succeeded`, `failed` or `release`.
        """
        if self.error is None:
            return True
        if time.monotonic() < self.probe_at:
            return False
        self._is_probing = True
        return True

    def succeeded(self) -> None:
        """Close."""
        self.error, self._failures, self._is_probing = None, 0, False

    def failed(self, error: Exception) -> None:
        """Open, or stay open for a longer delay."""
        if self.error is None or self._is_probing:
            delay_seconds = self._first_delay_seconds * 2.0 ** min(self._failures, 16)
            delay_seconds = min(delay_seconds, self._max_delay_seconds) * random.uniform(0.75, 1.0)  # noqa: S311 -- not a secret
            self._failures += 1
            self._probe_at = time.monotonic() + delay_seconds
        self.error, self._is_probing = error, False

    def release(self) -> None:
        """The probe has shown nothing; another caller may be the probe."""
        self._is_probing = False


class DependencyGuard:
    """Watches the calls to one store, and refuses them while the store does not answer or refuses.

    A call that fails or takes long starts a probe. Only a failed probe opens the breaker: the call may have
    been the only one with a problem. Calls that are already running when it opens go on.

    Args:
        name: "qdrant" or "redis"; a label of a metric.
        probe: a cheap request to the store. It raises DependencyUnavailable if the store does not work.
        translated: the DependencyUnavailable that an error of the store's client stands for, if it does.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], Awaitable[object]],
        translated: Callable[[Exception], Exception],
    ) -> None:
        self.name = name
        self._probe = probe
        self._translated = translated
        self._breaker = CircuitBreaker(_FIRST_PROBE_DELAY_SECONDS, _LAST_PROBE_DELAY_SECONDS)
        self._error: DependencyUnavailable | None = None
        self._investigation: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def error(self) -> DependencyUnavailable | None:
        """Why calls are refused now; None if they are not."""
        return self._error

    @property
    def reason(self) -> str:
        """The reason of `error`, such as "STORE_ACCESS_DENIED"; "" if calls are not refused."""
        return "" if self._error is None else reason_name(self._error.reason)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Around one call of the store's client.

        Raises:
            DependencyUnavailable: the store is known to fail. Nothing was sent.
        """
        if _is_probe.get():
            yield
            return
        if self._error is not None:
            # A new one each time: an exception that is raised again keeps all its tracebacks.
            raise type(self._error)(str(self._error), retry_delay_seconds=self._error.retry_delay_seconds)
        timer = asyncio.get_running_loop().call_later(_SUSPICIOUS_SECONDS, self.suspect)
        try:
            yield
        except Exception as error:
            if isinstance(self._translated(error), DependencyUnavailable):
                self.suspect()
            raise
        finally:
            timer.cancel()

    def suspect(self) -> None:
        """Probe in the background, unless a probe is running."""
        if self._is_closed:
            return
        if self._investigation is None or self._investigation.done():
            self._investigation = asyncio.get_running_loop().create_task(self._investigate())

    async def watch_forever(self) -> None:
        """Probe every few seconds, so that metrics and health are right without calls."""
        while True:
            self.suspect()
            await asyncio.sleep(_WATCH_SECONDS)

    async def close(self) -> None:
        """Stop probing. A probe that does not end is left to the store's client, which closes its calls."""
        self._is_closed = True
        if self._investigation is not None:
            self._investigation.cancel()
            await asyncio.wait([self._investigation], timeout=_PROBE_SECONDS)
        self._note(None)

    async def _investigate(self) -> None:
        """Probe until a probe succeeds."""
        _is_probe.set(True)
        silent = 0
        try:
            # gRPC may answer a cancellation with an error of its own, so that it does not end this loop.
            while (error := await self._failure()) is not None and not self._is_closed:
                silent += 1
                if isinstance(error, StoreRefuses) or silent >= _SILENT_PROBES:
                    self._breaker.failed(error)
                    self._note(error)
                await asyncio.sleep(max(0.0, self._breaker.probe_at - time.monotonic()))
                self._breaker.admit()
        finally:
            # After a bug in a probe, the next investigation must not wait for this one.
            self._breaker.release()
        if not self._is_closed:
            self._breaker.succeeded()
            self._note(None)

    async def _failure(self) -> DependencyUnavailable | None:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._probe()
        except DependencyUnavailable as error:
            return error
        except TimeoutError:
            message = f"{self.name.capitalize()} does not answer"
            return DependencyUnavailable(message, retry_delay_seconds=_LAST_PROBE_DELAY_SECONDS)
        except TextMatchError:
            # It answers.
            return None
        return None

    def _note(self, error: DependencyUnavailable | None) -> None:
        if str(error) != str(self._error):
            if error is None:
                _log.info("store works again", extra={"dependency": self.name})
            else:
                reason = reason_name(error.reason)
                _log.error(
                    "store fails", extra={"dependency": self.name, "reason": reason, "error": str(error)}
                )
            DEPENDENCY_FAILING.remove_by_labels({"dependency": self.name})
        if error is not None:
            DEPENDENCY_FAILING.labels(self.name, reason_name(error.reason)).set(1)
        self._error = error
