"""A worker that sends its bulk work as interactive calls, to show what the encoder's lanes are good for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from textmatch.encoder_client import EncoderClient
from textmatch.types import EncodeResult
from workers.__main__ import main

_encode_in_lane = EncoderClient.encode


async def _encode(client: EncoderClient, texts: Sequence[str], **options: Any) -> EncodeResult:
    return await _encode_in_lane(client, texts, **{**options, "is_bulk": False})


if __name__ == "__main__":
    EncoderClient.encode = _encode  # type: ignore[method-assign, assignment]
    sys.exit(main())
