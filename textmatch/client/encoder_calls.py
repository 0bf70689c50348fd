"""Calls of the encoder with any number of texts or pairs: in parts, many of them in the bulk lane."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

from textmatch.client import arguments
from textmatch.client.arguments import TextPair
from textmatch.client.connection import ENCODE, GET_MODELS, SCORE, Connection, Method, chunks, utf8_bytes
from textmatch.types import EncodeResult, ScoreResult
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.wire.encoding import encode_result, priority, score_result

Item = TypeVar("Item", str, TextPair)
EncoderRequest = TypeVar("EncoderRequest", pb.EncodeRequest, pb.ScoreRequest)
Response = TypeVar("Response")

# More texts than this go in the bulk lane.
_MAX_INTERACTIVE_TEXTS = 64


class EncoderCalls:
    """The encoder behind a connection.

    Args:
        connection: may be closed by its owner only.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # What the encoder has said about its limits, for all clients that share a connection to it.
        self._known_limits: list[pb.Limits] = []

    def of_caller(self, api_key: str, request_id: str) -> Self:
        """The same for another caller."""
        other = copy.copy(self)
        vars(other).update(connection=self.connection.of_caller(api_key, request_id))
        return other

    async def encode(
        self,
        texts: list[str],
        to_request: Callable[[list[str]], pb.EncodeRequest],
        timeouts: tuple[float, float],
    ) -> EncodeResult:
        """Embed the texts.

        Args:
            to_request: makes the request for some of them.
            timeouts: seconds for an interactive call, and for one in the bulk lane.
        """
        return encode_result(await self._call(ENCODE, "texts", texts, to_request, timeouts))

    async def score(
        self,
        field: str,
        items: list[Item],
        to_request: Callable[[list[Item]], pb.ScoreRequest],
        timeouts: tuple[float, float],
    ) -> ScoreResult:
        """Score texts or pairs, which are in this field of the request; otherwise as `encode`."""
        return score_result(await self._call(SCORE, field, items, to_request, timeouts))

    async def get_models(self, timeout_seconds: float) -> pb.GetModelsResponse:
        """The loaded models and the limits."""
        return await self.connection.call(GET_MODELS, pb.GetModelsRequest(), timeout_seconds)

    async def _call(
        self,
        method: Method[EncoderRequest, Response],
        field: str,
        items: list[Item],
        to_request: Callable[[list[Item]], EncoderRequest],
        timeouts: tuple[float, float],
    ) -> list[Response]:
        is_bulk = len(items) > _MAX_INTERACTIVE_TEXTS
        interactive_seconds, bulk_seconds = timeouts
        limits = await self._limits(interactive_seconds)
        arguments.check_texts(field, items, limits.max_text_bytes)

        def requests() -> Iterator[tuple[int, EncoderRequest]]:
            for start, chunk in chunks(items, _size_bytes, limits.max_texts):
                request = to_request(chunk)
                request.priority = priority(is_bulk=is_bulk)
                yield start, request

        seconds = bulk_seconds if is_bulk else interactive_seconds
        return [response async for response in self.connection.call_each(method, requests(), seconds)]

    async def _limits(self, timeout_seconds: float) -> pb.Limits:
        if not self._known_limits:
            self._known_limits.append((await self.get_models(timeout_seconds)).limits)
        return self._known_limits[0]


def _size_bytes(item: str | TextPair) -> int:
    return utf8_bytes(item) if isinstance(item, str) else sum(map(utf8_bytes, item))
