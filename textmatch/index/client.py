"""The connection to Qdrant, and the translation of its errors.

Every call goes through a guard (textmatch/circuit_breaker.py): while Qdrant does not answer, or refuses the
key, calls fail at once. `Qdrant.guard.error` says why.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import grpc
from qdrant_client import AsyncQdrantClient

from textmatch.circuit_breaker import DependencyGuard
from textmatch.errors import DependencyUnavailable, InvalidInput, StoreMisconfigured, TextMatchError
from textmatch.index.qdrant_errors import translated_error

DEFAULT_GRPC_PORT = 6334
# Older servers ignore the condition of an upsert.
MIN_VERSION = (1, 16)
_START_CHECK_SECONDS = 2.0
_GRPC_OPTIONS = {
    "grpc.max_send_message_length": 64 * 1024 * 1024,
    "grpc.max_receive_message_length": 64 * 1024 * 1024,
    "grpc.initial_reconnect_backoff_ms": 100,
    # Also the time limit of one connection attempt.
    "grpc.min_reconnect_backoff_ms": 2_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
    # A connection whose packets are dropped is closed, and its calls fail.
    "grpc.keepalive_time_ms": 5_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.http2.max_pings_without_data": 0,
}


class CollectionGone(DependencyUnavailable):
    """A collection was dropped after its name was read from an alias. A retry finds its successor."""

    def __init__(self, collection: str) -> None:
        super().__init__(f"the collection {collection} is gone", retry_delay_seconds=0.0)


class QdrantTooOld(StoreMisconfigured):
    """The server is too old: it would ignore the conditions of writes, and older versions would win."""


async def check_version(client: AsyncQdrantClient) -> None:
    """Check that the server is new enough.

    Raises:
        QdrantTooOld: it is not.
        DependencyUnavailable: it does not answer.
    """
    async with translated_errors():
        version = (await client.info()).version
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < MIN_VERSION:
        wanted = ".".join(map(str, MIN_VERSION))
        raise QdrantTooOld(
            f"Qdrant is version {version}; textmatch needs {wanted} or newer", retry_delay_seconds=10.0
        )


async def check_version_at_start(client: AsyncQdrantClient) -> None:
    """The same, but a server that does not answer is not an error: it is checked later.

    Raises:
        QdrantTooOld: the server is too old.
    """
    try:
        async with asyncio.timeout(_START_CHECK_SECONDS):
            await check_version(client)
    except QdrantTooOld:
        raise
    except (TextMatchError, TimeoutError):
        return


class Qdrant(AsyncQdrantClient):
    """A client whose calls are guarded.

    Attributes:
        guard: knows whether Qdrant answers.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.guard = DependencyGuard("qdrant", self._probe, translated_error)
        # The client has no option for interceptors. It opens its channels when they are first used.
        self._remote = cast("Any", self._client)
        self._open_channels = self._remote._init_grpc_channel  # noqa: SLF001
        self._remote._init_grpc_channel = self._open_guarded_channels  # noqa: SLF001

    async def close(self, grpc_grace: float | None = None, **kwargs: Any) -> None:
        """Close the connection, and stop the guard's probes."""
        await self.guard.close()
        await super().close(grpc_grace, **kwargs)

    async def _probe(self) -> None:
        # After a failure another server may answer.
        await check_version(self)
        # It asks for the API key, other than the version.
        async with translated_errors():
            await self.get_aliases()

    def _open_guarded_channels(self) -> None:
        if not self._remote._grpc_channel_pool:  # noqa: SLF001
            self._open_channels()
            for channel in self._remote._grpc_channel_pool:  # noqa: SLF001
                channel._unary_unary_interceptors.insert(0, _GuardInterceptor(self.guard))  # noqa: SLF001


class _GuardInterceptor(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    """Qdrant has no streaming methods."""

    def __init__(self, guard: DependencyGuard) -> None:
        self._guard = guard

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        async with self._guard.call():
            return await (await continuation(client_call_details, request))


def connect(
    url: str,
    api_key: str = "",
    timeout_seconds: float = 10.0,
    *,
    ca: str = "",
    cert: str = "",
    key: str = "",
) -> Qdrant:
    """A client that uses gRPC only, for a Qdrant cluster or the standalone server.

    Args:
        url: `http://host:6334` or `https://host:6334`; the port is Qdrant's gRPC port.
        ca: for https://, a PEM file of the CAs to trust; "" means those that come with gRPC.
        cert: the client certificate, a PEM file, if Qdrant asks for one. It needs `key`.

    Raises:
        InvalidInput: the URL has no host or another scheme, or a file cannot be read.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidInput.of_field("TEXTMATCH_QDRANT_URL", f"is {url!r}; it must look like http://host:6334")
    is_https = parts.scheme == "https"
    files = {"root_certificates": ca, "certificate_chain": cert, "private_key": key}
    tls_options = {name: _read(Path(file)) for name, file in files.items() if file and is_https}
    with key_without_tls():
        return Qdrant(
            host=parts.hostname,
            grpc_port=parts.port or DEFAULT_GRPC_PORT,
            prefer_grpc=True,
            https=is_https,
            api_key=api_key or None,
            timeout=int(timeout_seconds),
            grpc_options={**_GRPC_OPTIONS, **tls_options},
            # The check would use HTTP, on another port.
            check_compatibility=False,
        )


@contextmanager
def key_without_tls() -> Iterator[None]:
    """Without the library's warning of an API key without TLS, which is the choice of who wrote the URL.

    On stderr, logs are JSON and errors one line.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        yield


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}"
        raise InvalidInput.of_field("TEXTMATCH_QDRANT_CA", reason) from None


@asynccontextmanager
async def translated_errors(collection: str = "") -> AsyncIterator[None]:
    """Turns errors of Qdrant's client into TextMatchErrors, as textmatch/index/qdrant_errors.py lists them.

    Args:
        collection: the collection that is used. NOT_FOUND then means that it is gone.

    Raises:
        CollectionGone: there is no such collection.
        ReplicasMissing: some shards lack replicas, others have applied their part of a write.
        DependencyUnavailable: Qdrant does not answer, or not in time.
        StoreRefuses: Qdrant refuses the request until an operator acts.
        Overloaded: Qdrant asks the caller to retry later.
        InvalidInput: Qdrant rejects the request, for example a field name in a filter.
    """
    try:
        yield
    except Exception as error:
        if (
            collection
            and isinstance(error, grpc.aio.AioRpcError)
            and error.code() is grpc.StatusCode.NOT_FOUND
        ):
            raise CollectionGone(collection) from error
        translated = translated_error(error)
        if translated is error:
            raise
        raise translated from error
