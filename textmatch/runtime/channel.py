"""gRPC channels: keepalive, safe retries, balancing over replicas, certificates that may be replaced."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc

from textmatch.errors import InvalidInput
from textmatch.runtime.file_watch import FileWatch
from textmatch.runtime.tls import ClientTls

_log = logging.getLogger(__name__)

Metadata = tuple[tuple[str, str], ...]
Stub = TypeVar("Stub")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

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
# Time for calls that still run on the old channel.
_GRACE_SECONDS = 120.0


def call_metadata(api_key: str) -> Metadata:
    """Metadata of every call: the API key, if there is one."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


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


class ReloadingChannel(Generic[Stub]):
    """A channel that is reopened when a file of `tls` changes. Running calls end on the old one.

    Args:
        make_stub: the generated `...Stub`.
        tls: None: not encrypted, and never reopened.
    """

    def __init__(
        self, target: str, tls: ClientTls | None, make_stub: Callable[[grpc.aio.Channel], Stub]
    ) -> None:
        self._target = target
        self._tls = tls
        self._make_stub = make_stub
        self._watch = FileWatch(tls.files() if tls else (), _CHECK_SECONDS)
        self._channel = open_aio_channel(target, tls)
        self._stub = make_stub(self._channel)
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def stub(self) -> Stub:
        """The stub for one call; read this property again for the next call."""
        self._reopen_if_changed()
        return self._stub

    async def ready(self) -> None:
        """Wait until the channel is connected."""
        self._reopen_if_changed()
        await self._channel.channel_ready()

    async def close(self) -> None:
        """Close the channel and cancel its running calls."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close(grace=None)

    def _reopen_if_changed(self) -> None:
        if not self._watch.has_changed():
            return
        try:
            reopened = open_aio_channel(self._target, self._tls)
        except InvalidInput as error:
            _log.error("channel not reopened, the old certificate stays in use", extra={"error": str(error)})
            return
        closing = asyncio.ensure_future(self._channel.close(_GRACE_SECONDS))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._channel, self._stub = reopened, self._make_stub(reopened)
        _log.info("channel reopened with new certificates", extra={"target": self._target})
