"""The encoder as workers see it, who tell one that is away from one that their texts have killed."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from textmatch.encoder_client import EncoderClient
from textmatch.errors import DependencyUnavailable
from textmatch.runtime.grpc_errors import DETAILS_METADATA_KEY
from textmatch.types import EncodeResult

_CONNECT_SECONDS = 5.0


class EncoderCrashed(DependencyUnavailable):
    """The connection broke while the encoder worked on these texts: perhaps it died of one of them."""


class WatchfulEncoderClient(EncoderClient):
    """Connects before it sends texts, so that a failure on the way there is never taken for a death."""

    async def encode(self, texts: Any, **options: Any) -> EncodeResult:
        """As for EncoderClient.

        Raises:
            EncoderLost: the encoder was connected, took the texts, and went away without an answer.
        """
        await self._connect()
        try:
            return await super().encode(texts, **options)
        except DependencyUnavailable as error:
            if _has_an_answer(error):
                raise
            raise EncoderCrashed(str(error), retry_delay_seconds=error.retry_delay_seconds) from error

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._channel.ready()
        except TimeoutError:
            message = f"the encoder at {self._target} cannot be reached"
            raise DependencyUnavailable(message, retry_delay_seconds=1.0) from None


def _has_an_answer(error: DependencyUnavailable) -> bool:
    """Whether the encoder itself, and not gRPC, has said what is wrong."""
    cause = error.__cause__
    if not isinstance(cause, grpc.aio.AioRpcError):
        return True
    trailers: Any = cause.trailing_metadata() or ()
    return cause.code() is not grpc.StatusCode.UNAVAILABLE or DETAILS_METADATA_KEY in dict(trailers)
