"""Connecting to Redis, and what its failures mean to us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff
from redis.exceptions import OutOfMemoryError, RedisError

from textmatch.errors import DependencyUnavailable
from textmatch.queue.address import RedisAddress, parse

_MAX_CONNECTIONS = 32
_CONNECT_TIMEOUT_SECONDS = 2.0
_ANSWER_TIMEOUT_SECONDS = 5.0
_RETRIES = 2
_RETRY_SECONDS = 1.0
# Memory comes back as workers settle documents, or as somebody gives more.
_FULL_RETRY_SECONDS = 5.0


def connect(redis_url: str) -> Redis:
    """A client that answers or fails within seconds; address.py has the URLs. Connects when used.

    Raises:
        InvalidInput: the URL has another form.
    """
    address = parse(redis_url)
    timeouts = {
        "socket_connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "socket_timeout": _ANSWER_TIMEOUT_SECONDS,
        "socket_keepalive": True,
    }
    options: dict[str, Any] = {
        **timeouts,
        "username": address.username,
        "password": address.password,
        "db": address.database,
        "health_check_interval": 30,
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.05), _RETRIES),
        "decode_responses": True,
    }
    if address.master_name:
        return _master(address, options, timeouts)
    [(host, port)] = address.hosts
    if address.tls is not None:
        options |= {"connection_class": SSLConnection, **address.tls}
    pool = BlockingConnectionPool(
        max_connections=_MAX_CONNECTIONS, timeout=_ANSWER_TIMEOUT_SECONDS, host=host, port=port, **options
    )
    return Redis.from_pool(pool)


def _master(address: RedisAddress, options: dict[str, Any], timeouts: dict[str, Any]) -> Redis:
    """A client that asks the Sentinels for the master whenever it connects."""
    tls = {} if address.tls is None else {"ssl": True, **address.tls}
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        list(address.hosts), sentinel_kwargs={**timeouts, **address.sentinel_login, **tls}, **options, **tls
    )
    master: Redis = sentinels.master_for(address.master_name, connection_pool_class=_MasterPool)
    return master


class _MasterPool(SentinelConnectionPool):
    """Closes the connections to the Sentinels too."""

    sentinel_manager: Any

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close everything; what is used again connects again."""
        await super().disconnect(inuse_connections)
        for sentinel in self.sentinel_manager.sentinels:
            await sentinel.aclose()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns every failure of Redis into ours: no document is ever at fault for one.

    Raises:
        DependencyUnavailable: Redis does not answer, not in time, or takes no writes now.
    """
    try:
        yield
    except OutOfMemoryError as error:
        message = "Redis takes no more writes: its memory is at maxmemory"
        raise DependencyUnavailable(message, retry_delay_seconds=_FULL_RETRY_SECONDS) from error
    except (RedisError, OSError) as error:
        raise DependencyUnavailable(
            f"Redis does not answer: {error}", retry_delay_seconds=_RETRY_SECONDS
        ) from error
