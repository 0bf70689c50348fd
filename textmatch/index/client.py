"""The connection to Qdrant, and the translation of its errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from qdrant_client import AsyncQdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

from textmatch.errors import DependencyUnavailable, InvalidInput, Overloaded, TextMatchError

DEFAULT_GRPC_PORT = 6334
# Older servers ignore the condition of an upsert.
MIN_VERSION = (1, 16)
_START_CHECK_SECONDS = 2.0
_GRPC_OPTIONS = {
    "grpc.max_send_message_length": 64 * 1024 * 1024,
    "grpc.max_receive_message_length": 64 * 1024 * 1024,
    "grpc.max_reconnect_backoff_ms": 2_000,
}
_TRANSIENT_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
    }
)

# Of the error of a node that has not heard of all of a new collection.
_JUST_MADE = "No target shard"
# Of the error of a write that some shards applied and others did not.
_FAILED_SHARDS = re.compile(r"(\d+) out of (\d+) shards failed to apply operation")


class ReplicasMissing(DependencyUnavailable):
    """Too few replicas of some shards applied a write, and it must be sent again.

    The write stays on the replicas that applied it. The other shards have applied their part.
    """


class CollectionGone(DependencyUnavailable):
    """A collection was dropped after its name was read from an alias. A retry finds its successor."""

    def __init__(self, collection: str) -> None:
        super().__init__(f"the collection {collection} is gone", retry_delay_seconds=0.0)


class QdrantTooOld(DependencyUnavailable):
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
    """The same, but a server that does not answer is no error: it is checked later.

    Raises:
        QdrantTooOld: the server is too old.
    """
    try:
        async with asyncio.timeout(_START_CHECK_SECONDS):
            await check_version(client)
    except QdrantTooOld:
        raise
    except (TextMatchError, TimeoutError, grpc.aio.AioRpcError):
        return


def connect(
    url: str,
    api_key: str = "",
    timeout_seconds: float = 10.0,
    *,
    ca: str = "",
    cert: str = "",
    key: str = "",
) -> AsyncQdrantClient:
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
    return AsyncQdrantClient(
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}"
        raise InvalidInput.of_field("TEXTMATCH_QDRANT_CA", reason) from None


@asynccontextmanager
async def translated_errors(collection: str = "") -> AsyncIterator[None]:
    """Turns errors of Qdrant's client into TextMatchErrors. Errors that indicate a bug pass through.

    Args:
        collection: the collection that is used. NOT_FOUND then means that it is gone.

    Raises:
        CollectionGone: there is no such collection.
        ReplicasMissing: some shards lack replicas, others have applied their part of a write.
        DependencyUnavailable: Qdrant does not answer, or not in time.
        Overloaded: Qdrant asks the caller to retry later.
        InvalidInput: Qdrant rejects the request, for example a field name in a filter.
    """
    try:
        yield
    except ResourceExhaustedResponse as error:
        raise Overloaded(f"Qdrant: {error}", retry_delay_seconds=float(error.retry_after_s)) from error
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
            raise InvalidInput.of_field("request", f"Qdrant rejects it: {error.details()}") from error
        if collection and error.code() == grpc.StatusCode.NOT_FOUND:
            raise CollectionGone(collection) from error
        if error.code() not in _TRANSIENT_CODES and _JUST_MADE not in (error.details() or ""):
            raise
        message = f"Qdrant does not answer: {error.details()}"
        kind = ReplicasMissing if _is_partly_applied(error.details() or "") else DependencyUnavailable
        raise kind(message, retry_delay_seconds=1.0) from error


def _is_partly_applied(details: str) -> bool:
    """Whether a write failed on some shards only."""
    shards = _FAILED_SHARDS.search(details)
    return shards is not None and int(shards[1]) < int(shards[2])
