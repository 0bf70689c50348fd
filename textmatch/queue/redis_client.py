"""Connecting to Redis, and what its failures mean to us.

Where Redis is: one server, or Sentinels that know which server is the master now; with or without TLS.

    redis://user:password@host:6379/0                          one server
    sentinel://user:password@host:26379,host2:26379/name/0     the master called "name"
    rediss://, sentinels://                                    the same over TLS

User and password are those of the Redis servers. Options behind a question mark: `ssl_ca_certs`,
`ssl_certfile` and `ssl_keyfile`, paths of PEM files, where the system's certificates do not do;
`sentinel_username` and `sentinel_password`, if the Sentinels ask for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff
from redis.exceptions import OutOfMemoryError, RedisError

from textmatch.errors import DependencyUnavailable, InvalidInput

_REDIS_PORT = 6379
_SENTINEL_PORT = 26379
_SCHEMES = ("redis", "rediss", "sentinel", "sentinels")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class RedisAddress:
    """A URL of the form above, in parts.

    Args:
        hosts: the server, or the Sentinels.
        master_name: empty if there is no Sentinel.
        tls: options of redis-py for TLS; None without TLS.
        sentinel_login: what the Sentinels themselves ask for, as redis-py calls it.
    """

    hosts: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None
    master_name: str
    database: int
    tls: Mapping[str, str] | None
    sentinel_login: Mapping[str, str] = field(default_factory=dict)

    def broker_url(self) -> str:
        """As Celery has it, of the first host, without the name of the master and the options."""
        login = f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@"
        scheme = "sentinel" if self.master_name else "redis"
        prefix = f"{scheme}://{login if self.username or self.password else ''}"
        host, port = self.hosts[0]
        return f"{prefix}{_bracketed(host)}:{port}/{self.database}"


def parse(redis_url: str) -> RedisAddress:
    """The parts of a URL.

    Raises:
        InvalidInput: it has another form. The message does not repeat the URL, which may hold a password.
    """
    try:
        return _parse(redis_url)
    except ValueError as error:
        form = "redis://host:6379/0 or sentinel://host:26379,host2:26379/name/0, over TLS rediss, sentinels"
        reason = f"is no Redis URL: {error}; it must look like {form}"
        raise InvalidInput.of_field("TEXTMATCH_REDIS_URL", reason) from None


def _parse(redis_url: str) -> RedisAddress:
    parts = urlsplit(redis_url)
    if parts.scheme not in _SCHEMES:
        raise ValueError("it begins with none of redis://, rediss://, sentinel://, sentinels://")
    has_sentinels = parts.scheme.startswith("sentinel")
    uses_tls = parts.scheme.endswith("s") and parts.scheme != "redis"
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    default_port = _SENTINEL_PORT if has_sentinels else _REDIS_PORT
    found = tuple(_host(host, default_port) for host in hosts.split(","))
    if len(found) > 1 and not has_sentinels:
        raise ValueError("only Sentinels may be several")
    path = [unquote(part) for part in parts.path.split("/")[1:]]
    master_name = path.pop(0) if has_sentinels and path else ""
    if has_sentinels and not master_name:
        raise ValueError("the name of the master is missing")
    options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    allowed = (*(_TLS_OPTIONS if uses_tls else ()), *(_SENTINEL_OPTIONS if has_sentinels else ()))
    if options.keys() - set(allowed):
        raise ValueError(f"it has other options than {', '.join(allowed) or 'none'}")
    return RedisAddress(
        hosts=found,
        username=unquote(username) or None,
        password=unquote(password) or None,
        master_name=master_name,
        database=_database(path),
        tls={name: value for name, value in options.items() if name in _TLS_OPTIONS} if uses_tls else None,
        sentinel_login={
            name.removeprefix("sentinel_"): value
            for name, value in options.items()
            if name in _SENTINEL_OPTIONS
        },
    )


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    try:
        return parts.hostname, parts.port or default_port
    except ValueError:
        # Its message repeats a piece of the URL.
        raise ValueError("a port is no number") from None


def _database(path: list[str]) -> int:
    match path:
        case [] | [""]:
            return 0
        case [number] if number.isdecimal():
            return int(number)
    raise ValueError("the database is no whole number")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


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
