"""Telling Redis that messages are still being worked on, so that no other worker is given them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import Redis

from textmatch.errors import DependencyUnavailable
from textmatch.queue import holding
from textmatch.queue.connection import translated_errors

_log = logging.getLogger(__name__)


class Leases:
    """The messages that this process holds.

    With leases the visibility timeout bounds how long the death of a worker goes unnoticed, not how long a
    message may take: a slow encoder never makes a batch run twice, and still its messages are not long in
    coming back.
    """

    def __init__(self, redis: Redis, visibility_timeout_seconds: float) -> None:
        self._renewal = redis.register_script(holding.RENEW.script)
        # Two renewals may fail before the message is given away.
        self._renewal_seconds = visibility_timeout_seconds / 3
        self._delivery_tags: set[str] = set()

    @contextmanager
    def hold(self, delivery_tag: str) -> Iterator[None]:
        """Keep this message for as long as the block runs."""
        self._delivery_tags.add(delivery_tag)
        try:
            yield
        finally:
            self._delivery_tags.discard(delivery_tag)

    async def renew_forever(self) -> None:
        """Renew all leases, again and again."""
        while True:
            await asyncio.sleep(self._renewal_seconds)
            try:
                await self._renew()
            except DependencyUnavailable as error:
                _log.warning("leases not renewed", extra={"error": str(error)})

    async def _renew(self) -> None:
        if not self._delivery_tags:
            return
        with translated_errors():
            await self._renewal(keys=holding.RENEW.keys, args=[time.time(), *self._delivery_tags])
