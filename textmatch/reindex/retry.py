"""Waiting out what passes: an encoder that is busy, a Qdrant that is restarted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from textmatch.errors import TextMatchError
from textmatch.index.client import CollectionGone

Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")

_PATIENCE_SECONDS = 300.0
_backoff = wait_random_exponential(multiplier=0.25, max=15.0)


async def patiently(
    step: Callable[Arguments, Awaitable[Answer]], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Answer:
    """Call what may be repeated, until it succeeds.

    Raises:
        TextMatchError: repeating does not help, or it did not for five minutes.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception(_may_pass),
        wait=_wait,
        stop=stop_after_delay(_PATIENCE_SECONDS),
        reraise=True,
    )
    return await retrying(step, *args, **kwargs)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, TextMatchError) and error.is_transient and not isinstance(error, CollectionGone)


def _wait(state: RetryCallState) -> float:
    """What the server asked for, and more each time."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_delay_seconds if isinstance(error, TextMatchError) else None
    return (asked or 0.0) + _backoff(state)
