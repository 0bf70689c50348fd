"""gRPC channels: keepalive, safe retries, balancing over replicas, certificates that may be replaced."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc

from textmatch.errors import InvalidInput
from textmatch.runtime.file_watch import FileWatch
from textmatch.runtime.tls import ClientTls

_log = logging.getLogger(__name__)

Metadata = tuple[tuple[str, str], ...]
Channel = TypeVar("Channel")
Stub = TypeVar("Stub")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
REQUEST_ID_METADATA_KEY = "x-request-id"

# https://github.com/grpc/proposal/blob/master/A6-client-retries.md
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {"name": [{}], "retryPolicy": _RETRY_POLICY},
        # A stream that gRPC itself retried after its server was killed hung until its deadline. The callers
        # of these methods resend what was not answered.
        {
            "name": [
                {"service": "textmatch.v1.MatcherService", "method": "BatchMatch"},
                {"service": "textmatch.v1.MatcherService", "method": "IngestDocuments"},
                {"service": "textmatch.v1.EncoderService", "method": "EncodeStream"},
            ]
        },
    ],
    # Stop retrying when more than half of the calls fail: retries must not keep a failing server overloaded.
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.5},
}

CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also the time limit of one connection attempt, TLS handshake included, on a busy machine.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

_ADDRESSES = "ipv4:"
_CHECK_SECONDS = 1.0
# Time for calls that still run on the old channel. Bulk calls may take minutes.
_GRACE_SECONDS = 900.0


def call_metadata(api_key: str, request_id: str = "") -> Metadata:
    """Metadata of every call: the API key and the id for the servers' logs, if there are any."""
    key = (("authorization", f"Bearer {api_key}"),) if api_key else ()
    return (*key, (REQUEST_ID_METADATA_KEY, request_id)) if request_id else key


def open_channel(target: str, tls: ClientTls | None = None) -> grpc.Channel:
    """A channel for synchronous code; without `tls` it is not encrypted.

    Args:
        target: `host:port`, or for replicas `dns:///name:port` or `ipv4:host:port,host:port`.

    Raises:
        InvalidInput: a file of `tls` cannot be read.
    """
    if tls is not None:
        return grpc.secure_channel(target, tls.credentials(), options=_options(target))
    return grpc.insecure_channel(target, options=_options(target))


def open_aio_channel(target: str, tls: ClientTls | None = None) -> grpc.aio.Channel:
    """A channel for asyncio; arguments and errors as for `open_channel`."""
    if tls is not None:
        return grpc.aio.secure_channel(target, tls.credentials(), options=_options(target))
    return grpc.aio.insecure_channel(target, options=_options(target))


def _options(target: str) -> tuple[tuple[str, str | int], ...]:
    """Options of a channel. With a list of addresses, certificates are checked against the first address."""
    if not target.startswith(_ADDRESSES):
        return CHANNEL_OPTIONS
    host = target.removeprefix(_ADDRESSES).partition(":")[0]
    return (*CHANNEL_OPTIONS, ("grpc.default_authority", host))


class _Reopened(ABC, Generic[Channel, Stub]):
    """A channel that is opened by the first call, and reopened when a file of `tls` changes.

    Args:
        make_stub: makes what the calls need from a channel, such as a generated `...Stub`.
        tls: None: not encrypted, and never reopened.

    Raises:
        InvalidInput: a file of `tls` cannot be read.
    """

    def __init__(self, target: str, tls: ClientTls | None, make_stub: Callable[[Channel], Stub]) -> None:
        if tls is not None:
            tls.credentials()
        self._target = target
        self._tls = tls
        self._make_stub = make_stub
        self._watch = FileWatch(tls.files() if tls else (), _CHECK_SECONDS)
        self._lock = threading.Lock()
        self._opened: tuple[Channel, Stub] | None = None
        self._is_closed = False

    @property
    def stub(self) -> Stub:
        """The stub for one call; read this property again for the next call.

        Raises:
            ValueError: the channel is closed.
        """
        return self._current()[1]

    def _current(self) -> tuple[Channel, Stub]:
        with self._lock:
            if self._is_closed:
                raise ValueError("the connection is closed")
            if self._opened is None:
                self._opened = self._opened_now()
            elif self._watch.has_changed():
                self._opened = self._reopened(*self._opened)
            return self._opened

    def _reopened(self, channel: Channel, stub: Stub) -> tuple[Channel, Stub]:
        try:
            opened = self._opened_now()
        except InvalidInput as error:
            _log.error("channel not reopened, the old certificate stays in use", extra={"error": str(error)})
            return channel, stub
        self._retire(channel)
        _log.info("channel reopened with new certificates", extra={"target": self._target})
        return opened

    def _opened_now(self) -> tuple[Channel, Stub]:
        channel = self._open()
        return channel, self._make_stub(channel)

    def _close_for_good(self) -> Channel | None:
        """Refuse further calls; returns the channel that is to be closed."""
        with self._lock:
            self._is_closed = True
            return self._opened[0] if self._opened else None

    @abstractmethod
    def _open(self) -> Channel:
        """A channel with the current content of the files."""

    @abstractmethod
    def _retire(self, channel: Channel) -> None:
        """Close the channel when its running calls have ended."""


class ReloadingChannel(_Reopened[grpc.aio.Channel, Stub]):
    """For asyncio. Belongs to the event loop of its first call. Running calls end on the old channel."""

    def __init__(
        self, target: str, tls: ClientTls | None, make_stub: Callable[[grpc.aio.Channel], Stub]
    ) -> None:
        super().__init__(target, tls, make_stub)
        self._closing: set[asyncio.Task[None]] = set()

    async def ready(self) -> None:
        """Wait until the channel is connected."""
        await self._current()[0].channel_ready()

    async def close(self) -> None:
        """Close the channel and cancel its running calls."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if (channel := self._close_for_good()) is not None:
            await channel.close(grace=None)

    def _open(self) -> grpc.aio.Channel:
        return open_aio_channel(self._target, self._tls)

    def _retire(self, channel: grpc.aio.Channel) -> None:
        closing = asyncio.ensure_future(channel.close(_GRACE_SECONDS))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


class BlockingReloadingChannel(_Reopened[grpc.Channel, Stub]):
    """For synchronous code; threads may share it. Running calls end on the old channel."""

    def __init__(self, target: str, tls: ClientTls | None, make_stub: Callable[[grpc.Channel], Stub]) -> None:
        super().__init__(target, tls, make_stub)
        # When each may be closed, on the monotonic clock: gRPC's close would cancel the running calls.
        self._retired: deque[tuple[float, grpc.Channel]] = deque()

    def close(self) -> None:
        """Close the channel and cancel its running calls."""
        if (channel := self._close_for_good()) is not None:
            channel.close()
        while self._retired:
            self._retired.popleft()[1].close()

    def _open(self) -> grpc.Channel:
        return open_channel(self._target, self._tls)

    def _retire(self, channel: grpc.Channel) -> None:
        now = time.monotonic()
        self._retired.append((now + _GRACE_SECONDS, channel))
        while self._retired[0][0] <= now:
            self._retired.popleft()[1].close()
