"""Connect to Redis, and translate its errors.

A URL names one server, or Sentinels that know which server is the master, with or without TLS:

    redis://user:password@host:6379/0                          one server
    sentinel://user:password@host:26379,host2:26379/name/0     the master called "name"
    rediss://, sentinels://                                    the same over TLS

Every command goes through a guard (textmatch/circuit_breaker.py): while Redis does not answer, or refuses the
password, commands fail at once. `GuardedRedis.guard.error` says why.

User and password are those of the Redis servers. Options in the query: `ssl_ca_certs`, `ssl_certfile` and
`ssl_keyfile`, paths of PEM files that replace the system's certificates; `sentinel_username` and
`sentinel_password`, if the Sentinels require them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    RedisError,
)

from textmatch.circuit_breaker import DependencyGuard
from textmatch.errors import DependencyUnavailable, InvalidInput, StoreAccessDenied, StoreMisconfigured

CONNECT_TIMEOUT_SECONDS = 2.0
_ANSWER_TIMEOUT_SECONDS = 5.0
# Options of redis-py for every connection.
SOCKET_OPTIONS: Mapping[str, Any] = {
    "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "socket_timeout": _ANSWER_TIMEOUT_SECONDS,
    "socket_keepalive": True,
}

_MAX_CONNECTIONS = 32
_RETRIES = 2
_RETRY_SECONDS = 1.0
_CONFIRM_SECONDS = 2.0
# Memory is freed as workers settle documents, or by an operator.
_FULL_RETRY_SECONDS = 5.0
_OPERATOR_RETRY_SECONDS = 5.0
# Replies that redis-py has no class for: protected mode, and an old password that is no longer valid.
_DENIED = ("DENIED", "NOAUTH", "WRONGPASS", "NOPERM")

_REDIS_PORT = 6379
_SENTINEL_PORT = 26379
_SCHEMES = ("redis", "rediss", "sentinel", "sentinels")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


class GuardedRedis(Redis):
    """A client whose commands are guarded.

    Attributes:
        guard: knows whether Redis answers.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.guard = DependencyGuard("redis", self._probe, _translated)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command."""
        async with self.guard.call():
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Several commands in one step."""
        pipe = _GuardedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.guard = self.guard
        return pipe

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections, and stop the guard's probes."""
        await self.guard.close()
        await super().aclose(close_connection_pool)

    async def _probe(self) -> None:
        with translated_errors():
            await self.ping()


class _GuardedPipeline(Pipeline):
    guard: DependencyGuard

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        async with self.guard.call():
            return await super().execute(raise_on_error)


def connect(redis_url: str) -> GuardedRedis:
    """A client that answers or fails within seconds. Connects when used.

    Raises:
        InvalidInput: the URL does not have the form above.
    """
    address = parse(redis_url)
    options: dict[str, Any] = {
        **SOCKET_OPTIONS,
        "username": address.username,
        "password": address.password,
        "db": address.database,
        "health_check_interval": 30,
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.05), _RETRIES),
        "decode_responses": True,
    }
    if address.master_name:
        sentinels = Sentinel(  # type: ignore[no-untyped-call]
            list(address.hosts),
            sentinel_kwargs=address.sentinel_options(),
            **options,
            **address.sentinel_tls(),
        )
        master: GuardedRedis = sentinels.master_for(
            address.master_name, redis_class=GuardedRedis, connection_pool_class=_MasterPool
        )
        return master
    [(host, port)] = address.hosts
    if address.tls is not None:
        options |= {"connection_class": SSLConnection, **address.tls}
    pool = BlockingConnectionPool(
        max_connections=_MAX_CONNECTIONS, timeout=_ANSWER_TIMEOUT_SECONDS, host=host, port=port, **options
    )
    return cast("GuardedRedis", GuardedRedis.from_pool(pool))


class _MasterPool(SentinelConnectionPool):
    """Asks the Sentinels for the master whenever it connects; closes the connections to them too."""

    sentinel_manager: Any

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close all connections; they reopen when used."""
        await super().disconnect(inuse_connections)
        for sentinel in self.sentinel_manager.sentinels:
            await sentinel.aclose()


async def run_confirmed(
    redis: Redis, script: AsyncScript, *, keys: Sequence[str], args: Sequence[str | int], replicas: int
) -> Any:
    """Run a script, and wait until so many replicas have what it wrote; 0: do not wait.

    The answer of a script that wrote nothing says nothing about replicas.

    Raises:
        DependencyUnavailable: Redis does not answer; or they did not confirm it in time. The script has run
            then, and may or may not survive the loss of the master.
    """
    with translated_errors():
        if not replicas:
            return await script(keys=keys, args=args)
        # WAIT is about the writes of its own connection, which a pipeline keeps.
        async with redis.pipeline(transaction=False) as pipe:
            pipe.eval(str(script.script), len(keys), *keys, *args)
            pipe.wait(replicas, int(_CONFIRM_SECONDS * 1_000))
            answer, confirmed = await pipe.execute()
    if confirmed < replicas:
        message = f"only {confirmed} of {replicas} replicas of Redis confirmed the write"
        raise DependencyUnavailable(message, retry_delay_seconds=_RETRY_SECONDS)
    return answer


def flattened(rows: Iterable[tuple[str | int, ...]]) -> list[str | int]:
    """Rows as the ARGV of a script."""
    return [value for row in rows for value in row]


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translates every failure of Redis. None of them is a document's fault.

    Raises:
        DependencyUnavailable: Redis does not answer in time, or refuses writes.
        StoreAccessDenied: Redis refuses user or password, or the user lacks a permission.
        StoreMisconfigured: Redis cannot write to its disk.
    """
    try:
        yield
    except (RedisError, OSError) as error:
        raise _translated(error) from error


def _translated(error: Exception) -> Exception:
    if isinstance(error, NoScriptError):
        # redis-py loads the script and tries again.
        return error
    if isinstance(error, OutOfMemoryError):
        message = "Redis refuses writes: its memory is at maxmemory"
        return DependencyUnavailable(message, retry_delay_seconds=_FULL_RETRY_SECONDS)
    is_denied = isinstance(error, (AuthenticationError, AuthorizationError, NoPermissionError))
    if is_denied or str(error).startswith(_DENIED):
        # Without a password, redis-py's first command HELLO is refused with advice for programmers.
        problem = "Authentication required" if "HELLO" in str(error) else str(error)
        message = f"Redis refuses textmatch's own login, TEXTMATCH_REDIS_URL: {problem}"
        return StoreAccessDenied(message, retry_delay_seconds=_OPERATOR_RETRY_SECONDS)
    if "MISCONF" in str(error):
        message = f"Redis refuses writes, because it cannot save them: {error}"
        return StoreMisconfigured(message, retry_delay_seconds=_OPERATOR_RETRY_SECONDS)
    if isinstance(error, (RedisError, OSError)):
        message = f"Redis does not answer: {error}"
        return DependencyUnavailable(message, retry_delay_seconds=_RETRY_SECONDS)
    return error


@dataclass(frozen=True)
class RedisAddress:
    """A parsed URL.

    Args:
        hosts: the server, or the Sentinels.
        master_name: empty without Sentinels.
        tls: options of redis-py for TLS; None without TLS.
        sentinel_login: options of redis-py for the Sentinels' own login.
    """

    hosts: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None
    master_name: str
    database: int
    tls: Mapping[str, str] | None
    sentinel_login: Mapping[str, str] = field(default_factory=dict)

    def broker_url(self) -> str:
        """The URL for Celery: the first host only, without the master's name and the options."""
        login = f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@"
        scheme = "sentinel" if self.master_name else "redis"
        prefix = f"{scheme}://{login if self.username or self.password else ''}"
        host, port = self.hosts[0]
        host = f"[{host}]" if ":" in host else host
        return f"{prefix}{host}:{port}/{self.database}"

    def sentinel_tls(self) -> dict[str, Any]:
        """TLS as redis-py takes it with Sentinels."""
        return {} if self.tls is None else {"ssl": True, **self.tls}

    def sentinel_options(self) -> dict[str, Any]:
        """Options of redis-py's connections to the Sentinels."""
        return {**SOCKET_OPTIONS, **self.sentinel_login, **self.sentinel_tls()}


def parse(redis_url: str) -> RedisAddress:
    """Parse a URL.

    Raises:
        InvalidInput: it does not have the form above. The message omits the URL, which may hold a password.
    """
    try:
        return _parse(redis_url)
    except ValueError as error:
        form = "redis://host:6379/0 or sentinel://host:26379,host2:26379/name/0, over TLS rediss, sentinels"
        reason = f"is not a Redis URL: {error}; it must look like {form}"
        raise InvalidInput.of_field("TEXTMATCH_REDIS_URL", reason) from None


def _parse(redis_url: str) -> RedisAddress:
    parts = urlsplit(redis_url)
    if parts.scheme not in _SCHEMES:
        raise ValueError("it must begin with redis://, rediss://, sentinel:// or sentinels://")
    has_sentinels = parts.scheme.startswith("sentinel")
    uses_tls = parts.scheme.endswith("s") and parts.scheme != "redis"
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    default_port = _SENTINEL_PORT if has_sentinels else _REDIS_PORT
    found = tuple(_host(host, default_port) for host in hosts.split(","))
    if len(found) > 1 and not has_sentinels:
        raise ValueError("only Sentinels may have several hosts")
    path = [unquote(part) for part in parts.path.split("/")[1:]]
    master_name = path.pop(0) if has_sentinels and path else ""
    if has_sentinels and not master_name:
        raise ValueError("the name of the master is missing")
    options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    allowed = (*(_TLS_OPTIONS if uses_tls else ()), *(_SENTINEL_OPTIONS if has_sentinels else ()))
    if options.keys() - set(allowed):
        raise ValueError(f"its only options are {', '.join(allowed)}" if allowed else "it takes no options")
    tls = {name: value for name, value in options.items() if name in _TLS_OPTIONS}
    return RedisAddress(
        hosts=found,
        username=unquote(username) or None,
        password=unquote(password) or None,
        master_name=master_name,
        database=_database(path),
        tls=tls if uses_tls else None,
        sentinel_login={
            name.removeprefix("sentinel_"): options[name] for name in options.keys() - set(_TLS_OPTIONS)
        },
    )


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    try:
        return parts.hostname, parts.port or default_port
    except ValueError:
        # The original message repeats a part of the URL.
        raise ValueError("a port is not a number") from None


def _database(path: list[str]) -> int:
    match path:
        case [] | [""]:
            return 0
        case [number] if number.isdecimal():
            return int(number)
    raise ValueError("the database is not a whole number")
