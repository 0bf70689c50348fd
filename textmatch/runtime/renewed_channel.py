"""A channel whose certificates may be replaced while it is in use."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc

from textmatch.errors import InvalidInput
from textmatch.runtime.channel import open_aio_channel
from textmatch.runtime.tls import ClientTls

_log = logging.getLogger(__name__)

Stub = TypeVar("Stub")

_CHECK_SECONDS = 1.0
# For calls that run on the old channel.
_GRACE_SECONDS = 120.0


class RenewedChannel(Generic[Stub]):
    """Opens another channel when a file of `tls` changed; running calls end on the old one.

    Args:
        make_stub: the generated `...Stub`.
        tls: None: in the clear, and never renewed.
    """

    def __init__(
        self, target: str, tls: ClientTls | None, make_stub: Callable[[grpc.aio.Channel], Stub]
    ) -> None:
        self._target = target
        self._tls = tls
        self._make_stub = make_stub
        self._signature = tls.signature() if tls else ()
        self._checked_at = time.monotonic()
        self._channel = open_aio_channel(target, tls)
        self._stub = make_stub(self._channel)
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def stub(self) -> Stub:
        """For one call; ask again for the next one."""
        self._renew_if_changed()
        return self._stub

    async def ready(self) -> None:
        """Wait until it is connected."""
        self._renew_if_changed()
        await self._channel.channel_ready()

    async def close(self) -> None:
        """Running calls are cancelled."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close(grace=None)

    def _renew_if_changed(self) -> None:
        now = time.monotonic()
        if self._tls is None or now - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = now
        signature = self._tls.signature()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            renewed = open_aio_channel(self._target, self._tls)
        except InvalidInput as error:
            _log.error("the certificate stays as it was", extra={"error": str(error)})
            return
        closing = asyncio.ensure_future(self._channel.close(_GRACE_SECONDS))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._channel, self._stub = renewed, self._make_stub(renewed)
        _log.info("connects with other certificates", extra={"target": self._target})
