"""The encoder as the matcher sees it, whose key is not its callers' business."""

from __future__ import annotations

import logging
from typing import Any

from textmatch.encoder_client import EncoderClient
from textmatch.errors import DependencyUnavailable, PermissionDenied, Unauthenticated

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0


class MatchersEncoderClient(EncoderClient):
    """Tells callers, whose own keys are good, that the encoder is away when it refuses the matcher's."""

    async def _call(self, method: Any, request: object, timeout_seconds: float) -> Any:
        try:
            return await super()._call(method, request, timeout_seconds)
        except (Unauthenticated, PermissionDenied) as error:
            _log.error("the encoder refuses TEXTMATCH_ENCODER_API_KEY", extra={"error": str(error)})
            message = "the encoder refuses the matcher"
            raise DependencyUnavailable(message, retry_delay_seconds=_RETRY_SECONDS) from error
