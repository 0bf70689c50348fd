"""The calls to the encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from textmatch.client.connection import Connection, UnaryMethod, chunks, utf8_bytes
from textmatch.documents import text_violation
from textmatch.errors import InvalidInput, Violation, raise_violations
from textmatch.types import EncodeResult, ModelInfo, Role, Scorer, ScoreResult
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc
from textmatch.wire.encoding import ROLES, SCORERS, encode_result, model_info, priority, score_result

Item = TypeVar("Item")
Request = TypeVar("Request")
Response = TypeVar("Response")
TextPair = tuple[str, str]

# More texts than this go in the bulk lane.
_MAX_INTERACTIVE_TEXTS = 64
_POSITION = re.compile(r"(texts|pairs)\[(\d+)\]")


@dataclass(frozen=True)
class Limits:
    """What the encoder takes in one call."""

    max_texts: int
    max_text_bytes: int


class EncoderApi:
    """Encoding and scoring at one encoder. Inputs of any length are cut to the encoder's limits."""

    def __init__(self, server: Connection, timeout_seconds: float, bulk_timeout_seconds: float) -> None:
        self.server = server
        self._stub = pb_grpc.EncoderServiceStub(server.channel)
        self._timeout_seconds = timeout_seconds
        self._bulk_timeout_seconds = bulk_timeout_seconds

    def models(self) -> tuple[ModelInfo, ...]:
        """The loaded models."""
        return tuple(model_info(message) for message in self._get_models().models)

    def encode(self, texts: Sequence[str], role: Role, dimension: int | None, model: str) -> EncodeResult:
        """Embed texts."""
        self._check("texts", [(text,) for text in texts])

        def request(chunk: list[str]) -> pb.EncodeRequest:
            return pb.EncodeRequest(
                texts=chunk,
                role=ROLES[role],
                priority=priority(is_bulk=_is_bulk(texts)),
                dimension=dimension,
                model=model,
            )

        return encode_result(self._call(self._stub.Encode, texts, utf8_bytes, request))

    def score(self, query: str, texts: Sequence[str], scorer: Scorer, model: str) -> ScoreResult:
        """Score the query with each of the texts."""
        raise_violations([text_violation("query", query)])
        self._check("texts", [(text,) for text in texts])

        def request(chunk: list[str]) -> pb.ScoreRequest:
            return pb.ScoreRequest(
                query=query,
                texts=chunk,
                scorer=SCORERS[scorer],
                priority=priority(is_bulk=_is_bulk(texts)),
                model=model,
            )

        return score_result(self._call(self._stub.Score, texts, utf8_bytes, request))

    def score_pairs(self, pairs: Sequence[TextPair], scorer: Scorer, model: str) -> ScoreResult:
        """Score the two texts of each pair."""
        self._check("pairs", pairs)

        def request(chunk: list[TextPair]) -> pb.ScoreRequest:
            return pb.ScoreRequest(
                pairs=[pb.TextPair(first=first, second=second) for first, second in chunk],
                scorer=SCORERS[scorer],
                priority=priority(is_bulk=_is_bulk(pairs)),
                model=model,
            )

        return score_result(self._call(self._stub.Score, pairs, _pair_bytes, request))

    def _call(
        self,
        method: UnaryMethod[Request, Response],
        items: Sequence[Item],
        size_bytes: Callable[[Item], int],
        to_request: Callable[[list[Item]], Request],
    ) -> list[Response]:
        """Call the method with each chunk of the items."""
        pieces = list(chunks(items, size_bytes, self._limits.max_texts))
        timeout_seconds = self._bulk_timeout_seconds if _is_bulk(items) else self._timeout_seconds
        requests = (to_request(chunk) for _, chunk in pieces)
        answers = self.server.call_each(method, requests, timeout_seconds)
        return list(_with_positions_of_caller([start for start, _ in pieces], answers))

    @cached_property
    def _limits(self) -> Limits:
        limits = self._get_models().limits
        return Limits(limits.max_texts, limits.max_text_bytes)

    def _get_models(self) -> pb.GetModelsResponse:
        return self.server.call(self._stub.GetModels, pb.GetModelsRequest(), self._timeout_seconds)

    def _check(self, field: str, items: Sequence[tuple[str, ...]]) -> None:
        """Check all texts before anything is sent."""
        if not items:
            raise InvalidInput.of_field(field, "is empty; at least one item is needed")
        max_bytes = self._limits.max_text_bytes
        raise_violations(
            text_violation(f"{field}[{position}]", text, max_bytes)
            for position, texts in enumerate(items)
            for text in texts
        )


def _with_positions_of_caller(starts: Sequence[int], answers: Iterator[Response]) -> Iterator[Response]:
    """The answers. Errors name texts by their position in the whole input instead of the chunk."""
    for start in starts:
        try:
            yield next(answers)
        except InvalidInput as error:
            raise InvalidInput([_moved(violation, start) for violation in error.violations]) from error


def _moved(violation: Violation, start: int) -> Violation:
    field = _POSITION.sub(lambda found: f"{found[1]}[{int(found[2]) + start}]", violation.field)
    return replace(violation, field=field)


def _is_bulk(items: Sequence[object]) -> bool:
    return len(items) > _MAX_INTERACTIVE_TEXTS


def _pair_bytes(pair: TextPair) -> int:
    return utf8_bytes(pair[0]) + utf8_bytes(pair[1])
