"""Connecting to Redis, and what its failures mean to us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from textmatch.errors import DependencyUnavailable, InvalidInput

_MAX_CONNECTIONS = 32
_CONNECT_TIMEOUT_SECONDS = 2.0
_ANSWER_TIMEOUT_SECONDS = 5.0
_RETRIES = 2


def connect(redis_url: str) -> Redis:
    """A client for `redis://` or `rediss://` (TLS) that answers or fails within seconds. Connects when used.

    Raises:
        InvalidInput: the URL has another form.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=_MAX_CONNECTIONS,
            timeout=_ANSWER_TIMEOUT_SECONDS,
            socket_connect_timeout=_CONNECT_TIMEOUT_SECONDS,
            socket_timeout=_ANSWER_TIMEOUT_SECONDS,
            socket_keepalive=True,
            health_check_interval=30,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), _RETRIES),
            decode_responses=True,
        )
    except ValueError as error:
        # The message must not repeat the URL: it may hold a password.
        form = "it must look like redis://host:6379/0 or rediss://host:6379/0"
        raise InvalidInput.of_field("TEXTMATCH_REDIS_URL", f"is no Redis URL; {form}") from error
    return Redis.from_pool(pool)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns every failure of Redis into ours: no document is ever at fault for one.

    Raises:
        DependencyUnavailable: Redis does not answer, not in time, or takes no writes now.
    """
    try:
        yield
    except (RedisError, OSError) as error:
        raise DependencyUnavailable(f"Redis does not answer: {error}", retry_delay_seconds=1.0) from error
