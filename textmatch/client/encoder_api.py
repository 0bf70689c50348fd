"""The calls to the encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from textmatch import vectors
from textmatch.client.connection import Connection, UnaryMethod, chunks
from textmatch.client.results import EncodeResult, Model, ModelKind, Role, Scorer, ScoreResult
from textmatch.documents import text_violation
from textmatch.errors import InvalidInput, NotReady, Violation
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

Item = TypeVar("Item")
Request = TypeVar("Request")
Response = TypeVar("Response")
TextPair = tuple[str, str]

# More than this is bulk work, which lets interactive work go ahead.
_MAX_INTERACTIVE_TEXTS = 64
_MAX_CHUNK_BYTES = 4 * 1024 * 1024

_ROLES = {Role.QUERY: pb.ROLE_QUERY, Role.DOCUMENT: pb.ROLE_DOCUMENT}
_SCORERS = {
    Scorer.CROSS_ENCODER: pb.SCORER_CROSS_ENCODER,
    Scorer.PAIR_CLASSIFIER: pb.SCORER_PAIR_CLASSIFIER,
    Scorer.COSINE: pb.SCORER_COSINE,
}
_KINDS = {
    pb.MODEL_KIND_BI_ENCODER: ModelKind.BI_ENCODER,
    pb.MODEL_KIND_CROSS_ENCODER: ModelKind.CROSS_ENCODER,
}
_POSITION = re.compile(r"(texts|pairs)\[(\d+)\]")


@dataclass(frozen=True)
class Limits:
    """What the encoder takes in one call."""

    max_texts: int
    max_text_bytes: int


class EncoderApi:
    """Encoding and scoring at one encoder; inputs of any length are cut to the encoder's limits."""

    def __init__(self, server: Connection, timeout_seconds: float, bulk_timeout_seconds: float) -> None:
        self.server = server
        self._stub = pb_grpc.EncoderServiceStub(server.channel)
        self._timeout_seconds = timeout_seconds
        self._bulk_timeout_seconds = bulk_timeout_seconds

    def models(self) -> tuple[Model, ...]:
        """The loaded models."""
        return tuple(_model(message) for message in self._get_models().models)

    def encode(self, texts: Sequence[str], role: Role, dimension: int | None, model: str) -> EncodeResult:
        """Embed texts of any number."""
        self._check("texts", [(text,) for text in texts])
        priority = _priority(len(texts))

        def request(chunk: list[str]) -> pb.EncodeRequest:
            return pb.EncodeRequest(
                texts=chunk, role=_ROLES[role], priority=priority, dimension=dimension, model=model
            )

        answers = self._call(self._stub.Encode, texts, _text_bytes, request)
        blocks = [vectors.unpack(answer.embeddings, answer.dimension) for answer in answers]
        return EncodeResult(
            embeddings=np.concatenate(blocks),
            token_counts=tuple(count for answer in answers for count in answer.token_counts),
            truncated=tuple(flag for answer in answers for flag in answer.truncated),
            model_id=_only_model_id({answer.model_id for answer in answers}),
        )

    def score(self, query: str, texts: Sequence[str], scorer: Scorer, model: str) -> ScoreResult:
        """Score the query with each of the texts."""
        if violation := text_violation("query", query):
            raise InvalidInput([violation])
        self._check("texts", [(text,) for text in texts])
        priority = _priority(len(texts))

        def request(chunk: list[str]) -> pb.ScoreRequest:
            return pb.ScoreRequest(
                query=query, texts=chunk, scorer=_SCORERS[scorer], priority=priority, model=model
            )

        return _score_result(self._call(self._stub.Score, texts, _text_bytes, request))

    def score_pairs(self, pairs: Sequence[TextPair], scorer: Scorer, model: str) -> ScoreResult:
        """Score the two texts of each pair."""
        self._check("pairs", pairs)
        priority = _priority(len(pairs))

        def request(chunk: list[TextPair]) -> pb.ScoreRequest:
            messages = [pb.TextPair(first=first, second=second) for first, second in chunk]
            return pb.ScoreRequest(pairs=messages, scorer=_SCORERS[scorer], priority=priority, model=model)

        return _score_result(self._call(self._stub.Score, pairs, _pair_bytes, request))

    def _call(
        self,
        method: UnaryMethod[Request, Response],
        items: Sequence[Item],
        size_bytes: Callable[[Item], int],
        to_request: Callable[[list[Item]], Request],
    ) -> list[Response]:
        """Call the method with as many chunks as the items need."""
        pieces = list(chunks(items, size_bytes, max_items=self._limits.max_texts, max_bytes=_MAX_CHUNK_BYTES))
        is_bulk = _priority(len(items)) == pb.PRIORITY_BULK
        timeout_seconds = self._bulk_timeout_seconds if is_bulk else self._timeout_seconds
        requests = (to_request(chunk) for _, chunk in pieces)
        answers = self.server.call_each(method, requests, timeout_seconds)
        return list(_in_callers_positions([start for start, _ in pieces], answers))

    @cached_property
    def _limits(self) -> Limits:
        limits = self._get_models().limits
        return Limits(limits.max_texts, limits.max_text_bytes)

    def _get_models(self) -> pb.GetModelsResponse:
        return self.server.call(self._stub.GetModels, pb.GetModelsRequest(), self._timeout_seconds)

    def _check(self, field: str, items: Sequence[tuple[str, ...]]) -> None:
        """Name every bad text by its position before anything is sent."""
        if not items:
            raise InvalidInput.of_field(field, "is empty; at least one item is needed")
        max_bytes = self._limits.max_text_bytes
        violations = [
            violation
            for position, texts in enumerate(items)
            for text in texts
            if (violation := text_violation(f"{field}[{position}]", text, max_bytes)) is not None
        ]
        if violations:
            raise InvalidInput(violations)


def _in_callers_positions(starts: Sequence[int], answers: Iterator[Response]) -> Iterator[Response]:
    """The answers; an error names texts by their position in the whole input and not in its chunk."""
    for start in starts:
        try:
            yield next(answers)
        except InvalidInput as error:
            raise InvalidInput([_moved(violation, start) for violation in error.violations]) from error


def _moved(violation: Violation, start: int) -> Violation:
    field = _POSITION.sub(lambda found: f"{found[1]}[{int(found[2]) + start}]", violation.field)
    return replace(violation, field=field)


def _only_model_id(model_ids: set[str]) -> str:
    """Embeddings of two models must not be mixed, even if the encoder is updated between two chunks."""
    if len(model_ids) == 1:
        return model_ids.pop()
    raise NotReady(
        f"the encoder changed its model during the call ({', '.join(sorted(model_ids))}); call again"
    )


def _score_result(answers: list[pb.ScoreResponse]) -> ScoreResult:
    return ScoreResult(
        scores=np.array([score for answer in answers for score in answer.scores], np.float32),
        raw_scores=np.array([score for answer in answers for score in answer.raw_scores], np.float32),
        truncated=tuple(flag for answer in answers for flag in answer.truncated),
        model_id=_only_model_id({answer.model_id for answer in answers}),
    )


def _priority(count: int) -> pb.Priority.ValueType:
    return pb.PRIORITY_BULK if count > _MAX_INTERACTIVE_TEXTS else pb.PRIORITY_INTERACTIVE


def _text_bytes(text: str) -> int:
    return len(text.encode())


def _pair_bytes(pair: TextPair) -> int:
    return _text_bytes(pair[0]) + _text_bytes(pair[1])


def _model(message: pb.Model) -> Model:
    return Model(
        model_id=message.model_id,
        name=message.name,
        kind=_KINDS.get(message.kind, ModelKind.OTHER),
        dimension=message.dimension,
        max_tokens=message.max_tokens,
        dtype=message.dtype,
        device=message.device,
        has_pair_classifier=message.has_pair_classifier,
        is_default=message.is_default,
    )
