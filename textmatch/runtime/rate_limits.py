"""How many tokens each API key may send; counted in this process alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from textmatch.errors import Overloaded
from textmatch.runtime.api_keys import ApiKey

_BYTES_PER_TOKEN = 4
_BURST_SECONDS = 10.0


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class RateLimits:
    """Lets a request in while anything is left of ten seconds' allowance; what it takes beyond that is owed.

    So a request of any size gets in, and on average nobody gets more than the allowance. Keys of the same
    name share one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def charge(self, key: ApiKey, size_bytes: int) -> None:
        """Take what a request costs: a token for four bytes.

        Raises:
            Overloaded: nothing is left, with the time until something is.
        """
        rate = key.tokens_per_second
        if rate is None:
            return
        now = self._clock()
        bucket = self._buckets.setdefault(key.name, _Bucket(rate * _BURST_SECONDS, now))
        refilled = bucket.tokens + (now - bucket.filled_at) * rate
        bucket.tokens, bucket.filled_at = min(refilled, rate * _BURST_SECONDS), now
        if bucket.tokens <= 0:
            message = f"the API key {key.name} has used up its {rate:,.0f} tokens per second"
            raise Overloaded(message, retry_delay_seconds=(1 - bucket.tokens) / rate)
        bucket.tokens -= 1 + size_bytes / _BYTES_PER_TOKEN
