"""Pause collections whose documents cannot be indexed until an operator acts.

An error that only an operator can end says nothing about a document: Qdrant refuses the key, its disk is
full, no encoder serves the model. Then each collection has an open circuit breaker. One batch at a time is
tried, after growing delays, and the other messages go back to the queue at once. When a batch succeeds, the
collection goes on.

While all collections of this worker's recent messages are paused, it takes no messages, except one at a time
as the probe. Messages of other workers are not affected: a single worker with a wrong key holds nothing back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from textmatch.circuit_breaker import CircuitBreaker
from textmatch.errors import TextMatchError, reason_name
from textmatch.types import Problem
from textmatch.v1 import error_reason_pb2
from workers import metrics

_FIRST_DELAY_SECONDS = 1.0
_MAX_DELAY_SECONDS = 15.0
# A collection without messages for so long is forgotten. Probes of a queue that is not empty come more often.
_RECENT_SECONDS = 60.0
_INTERNAL = reason_name(error_reason_pb2.ERROR_REASON_INTERNAL)

_log = logging.getLogger(__name__)


class RetryBudgetExhausted(Exception):
    """Not every document is settled; the message must go back to the queue."""


class Paused(RetryBudgetExhausted):
    """The collection waits for an operator."""


class OperatorAwaited(Exception):
    """Raised out of an attempt that an operator must make possible; `cause` is the error."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Pause:
    """The breaker of one collection, and when it last had a message."""

    def __init__(self) -> None:
        self.breaker = CircuitBreaker(_FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS)
        self.used_at = time.monotonic()


class Pauses:
    """The pauses of one worker."""

    def __init__(self) -> None:
        self._pauses: dict[str, _Pause] = {}

    @contextmanager
    def attempt(self, collection: str) -> Iterator[None]:
        """Around the attempt to index documents of a collection. OperatorAwaited in the block pauses it.

        Raises:
            Paused: the collection is paused, or the block has paused it.
        """
        pause = self._pauses.setdefault(collection, _Pause())
        pause.used_at = time.monotonic()
        if not pause.breaker.admit():
            raise Paused(f"waiting for an operator: {pause.breaker.error}")
        try:
            yield
        except OperatorAwaited as awaited:
            self._open(collection, pause, awaited.cause)
            raise Paused(f"waiting for an operator: {awaited.cause}") from awaited.cause
        except BaseException:
            pause.breaker.release()
            raise
        if pause.breaker.error is not None:
            _log.info("collection goes on", extra={"collection": collection})
        pause.breaker.succeeded()
        metrics.OPERATOR_NEEDED.remove_by_labels({"collection": collection})

    def intake(self) -> int | None:
        """How many messages this worker may hold; None is no limit. May be called in any thread."""
        breakers = [one.breaker for one in list(self._pauses.values())]
        if not breakers or any(breaker.error is None for breaker in breakers):
            return None
        return 1 if any(breaker.probe_at <= time.monotonic() for breaker in breakers) else 0

    def forget_unused(self) -> None:
        """Drop the pauses of collections whose messages have gone to other workers, or were deleted."""
        now = time.monotonic()
        for collection, pause in list(self._pauses.items()):
            if now - pause.used_at >= _RECENT_SECONDS:
                del self._pauses[collection]
                metrics.OPERATOR_NEEDED.remove_by_labels({"collection": collection})

    def problems(self) -> dict[str, Problem]:
        """Why collections are paused, by collection. May be called in any thread."""
        return {
            name: Problem("worker", name, reason_of(one.breaker.error), str(one.breaker.error))
            for name, one in list(self._pauses.items())
            if one.breaker.error is not None
        }

    def _open(self, collection: str, pause: _Pause, error: Exception) -> None:
        reason = reason_of(error)
        pause.breaker.failed(error)
        metrics.OPERATOR_NEEDED.remove_by_labels({"collection": collection})
        metrics.OPERATOR_NEEDED.labels(collection, reason).set(1)
        _log.error(
            "waiting for an operator",
            extra={"collection": collection, "reason": reason, "error": str(error)},
        )


def reason_of(error: Exception | None) -> str:
    """The name of the error's reason; INTERNAL for an unexpected one."""
    return reason_name(error.reason) if isinstance(error, TextMatchError) else _INTERNAL
