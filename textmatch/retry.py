"""The retry policy: which errors are worth another try, and how long to wait before it.

The delay is the one that the server requests (RetryInfo), plus an exponential backoff with jitter. Callers
that were refused at the same time therefore retry at different times.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from textmatch.errors import Overloaded, TextMatchError

Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")

FIRST_BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 15.0


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    return isinstance(error, TextMatchError) and error.is_transient


def delay_seconds(
    error: BaseException | None,
    attempt: int,
    first_backoff_seconds: float = FIRST_BACKOFF_SECONDS,
    max_backoff_seconds: float = MAX_BACKOFF_SECONDS,
) -> float:
    """How long to wait after the error, in seconds.

    Args:
        attempt: how many tries have failed before this one.
    """
    asked = (error.retry_delay_seconds or 0.0) if isinstance(error, TextMatchError) else 0.0
    backoff = min(max_backoff_seconds, first_backoff_seconds * 2.0 ** min(attempt, 16))
    return asked + backoff * random.uniform(0.5, 1.0)  # noqa: S311 -- not a secret


@dataclass(frozen=True)
class RetryPolicy:
    """Retries after transient errors.

    Args:
        retry_on: which errors are worth another try.
        total_seconds: how long `call` tries.
    """

    retry_on: Callable[[BaseException], bool] = is_transient
    total_seconds: float = 300.0
    first_backoff_seconds: float = FIRST_BACKOFF_SECONDS
    max_backoff_seconds: float = MAX_BACKOFF_SECONDS

    async def call(
        self, step: Callable[Arguments, Awaitable[Answer]], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Answer:
        """Call a step until it succeeds, for `total_seconds` at most.

        Raises:
            Exception: the step's last error, if it is not retried or the next try would be too late.
        """
        return await self.call_until(time.monotonic() + self.total_seconds, step, *args, **kwargs)

    async def call_until(
        self,
        deadline: float,
        step: Callable[Arguments, Awaitable[Answer]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Answer:
        """As `call`, with a deadline on the monotonic clock. After the deadline there is a single try."""
        if deadline <= time.monotonic():
            return await step(*args, **kwargs)
        retrying = AsyncRetrying(
            retry=retry_if_exception(self.retry_on),
            wait=self._delay_seconds,
            stop=lambda state: time.monotonic() + state.upcoming_sleep >= deadline,
            reraise=True,
        )

        async def run() -> Answer:  # tenacity awaits coroutine functions only
            return await step(*args, **kwargs)

        return await retrying(run)

    def attempts(
        self, deadline: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> AsyncRetrying:
        """The attempts of an `async for` loop.

        Args:
            deadline: asked after each failure for the latest time of the next try, on the monotonic clock.
            sleep: waits so many seconds between two attempts.
        """
        return AsyncRetrying(
            sleep=sleep,
            retry=retry_if_exception(self.retry_on),
            wait=self._delay_seconds,
            stop=lambda state: time.monotonic() + state.upcoming_sleep > deadline(),
            reraise=True,
        )

    def _delay_seconds(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return delay_seconds(
            error, state.attempt_number - 1, self.first_backoff_seconds, self.max_backoff_seconds
        )


# For bulk work that an overloaded server refuses: short delays, until the deadline.
RETRY_OVERLOADED = RetryPolicy(
    retry_on=lambda error: isinstance(error, Overloaded), first_backoff_seconds=0.05, max_backoff_seconds=1.0
)
