"""The asyncio client of the encoder, for the matcher, the workers and the command line.

It takes and returns arrays. Every failure is a TextMatchError.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc

from textmatch import vectors
from textmatch.errors import (
    DependencyUnavailable,
    ModelMismatch,
    ModelNotFound,
    PermissionDenied,
    TextMatchError,
    Unauthenticated,
)
from textmatch.runtime.channel import ReloadingChannel, call_metadata
from textmatch.runtime.grpc_errors import DETAILS_METADATA_KEY, from_rpc_error
from textmatch.runtime.tls import ClientTls
from textmatch.types import EncodeResult, ModelInfo, ModelKind, Role, Scorer, ScoreResult
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc
from textmatch.vectors import Embeddings
from textmatch.wire.encoding import ROLES, SCORERS, encode_result, model_info, priority, score_result

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_AUTH_RETRY_SECONDS = 5.0
_CONNECT_SECONDS = 5.0


class EncoderCrashed(DependencyUnavailable):
    """The connection broke while the encoder processed these texts. One of them may have crashed it."""


class EncoderClient:
    """Calls one encoder, or balances over several by a `dns:///` target. Create it in a running event loop.

    Args:
        api_key: empty if the encoder requires none.
        tls: None means plain text. Its files may be replaced while the client is in use.
        hide_auth_errors: report a refused API key as DependencyUnavailable. The matcher does so, because its
            callers' own keys are valid.
        detect_crashes: `encode` connects before it sends texts, and raises EncoderCrashed if the encoder
            disconnected while it processed them. An encoder that cannot be reached does not count as crashed.
    """

    def __init__(
        self,
        target: str,
        api_key: str = "",
        tls: ClientTls | None = None,
        *,
        hide_auth_errors: bool = False,
        detect_crashes: bool = False,
    ) -> None:
        self._target = target
        self._metadata = call_metadata(api_key)
        self._channel: ReloadingChannel[Any] = ReloadingChannel(target, tls, pb_grpc.EncoderServiceStub)
        self._hide_auth_errors = hide_auth_errors
        self._detect_crashes = detect_crashes

    async def encode(
        self, texts: Sequence[str], *, is_query: bool, is_bulk: bool, timeout_seconds: float, model: str = ""
    ) -> EncodeResult:
        """Embed texts.

        Args:
            model: the bi-encoder that built the index, by id or name; empty means the encoder's default one.

        Raises:
            ModelMismatch: that model is not served.
            EncoderCrashed: the encoder received the texts and disconnected without an answer.
        """
        if self._detect_crashes:
            await self._connect()
        request = pb.EncodeRequest(
            texts=texts,
            role=ROLES[Role.QUERY if is_query else Role.DOCUMENT],
            priority=priority(is_bulk=is_bulk),
            model=model,
        )
        try:
            response = await self._call(
                self._channel.stub.Encode, request, timeout_seconds, may_crash=self._detect_crashes
            )
        except ModelNotFound as error:
            if not model:
                raise
            served = await self.bi_encoders(timeout_seconds=timeout_seconds)
            served_ids = ", ".join(one.model_id for one in served) or "no bi-encoder"
            raise ModelMismatch(index_model_id=model, encoder_model_id=served_ids) from error
        return encode_result([response])

    async def score(
        self, query: str, texts: Sequence[str], *, is_bulk: bool, timeout_seconds: float, model: str = ""
    ) -> ScoreResult:
        """Score the query with each text by a cross-encoder; an empty `model` means the default one."""
        request = pb.ScoreRequest(query=query, texts=texts, scorer=SCORERS[Scorer.CROSS_ENCODER], model=model)
        return await self._score(request, is_bulk, timeout_seconds)

    async def score_pairs(
        self, pairs: Sequence[tuple[str, str]], *, is_bulk: bool, timeout_seconds: float, model: str = ""
    ) -> ScoreResult:
        """Score the two texts of each pair; otherwise as `score`."""
        messages = [pb.TextPair(first=first, second=second) for first, second in pairs]
        request = pb.ScoreRequest(pairs=messages, scorer=SCORERS[Scorer.CROSS_ENCODER], model=model)
        return await self._score(request, is_bulk, timeout_seconds)

    async def classify(
        self, query: str, embeddings: Embeddings, *, is_bulk: bool, timeout_seconds: float, model: str
    ) -> ScoreResult:
        """Score the query with each (count, dimension) embedding by that bi-encoder's pair classifier."""
        request = pb.ScoreRequest(
            query=query,
            embeddings=vectors.pack(embeddings),
            scorer=SCORERS[Scorer.PAIR_CLASSIFIER],
            model=model,
        )
        return await self._score(request, is_bulk, timeout_seconds)

    async def models(self, *, timeout_seconds: float) -> list[ModelInfo]:
        """The models that are served; of each kind, the default one first."""
        answer = await self._call(self._channel.stub.GetModels, pb.GetModelsRequest(), timeout_seconds)
        return [model_info(message) for message in answer.models]

    async def bi_encoders(self, *, timeout_seconds: float) -> list[ModelInfo]:
        """The bi-encoders that are served, the default one first."""
        models = await self.models(timeout_seconds=timeout_seconds)
        return [model for model in models if model.kind is ModelKind.BI_ENCODER]

    async def close(self) -> None:
        """Close the channel; running calls are cancelled."""
        await self._channel.close()

    async def _score(self, request: pb.ScoreRequest, is_bulk: bool, timeout_seconds: float) -> ScoreResult:
        request.priority = priority(is_bulk=is_bulk)
        return score_result([await self._call(self._channel.stub.Score, request, timeout_seconds)])

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._channel.ready()
        except TimeoutError:
            message = f"the encoder at {self._target} cannot be reached"
            raise DependencyUnavailable(message, retry_delay_seconds=_RETRY_SECONDS) from None

    async def _call(
        self,
        method: Callable[..., Awaitable[Answer]],
        request: object,
        timeout_seconds: float,
        *,
        may_crash: bool = False,
    ) -> Answer:
        try:
            return await method(request, timeout=timeout_seconds, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, may_crash=may_crash) from error

    def _translated(self, error: grpc.aio.AioRpcError, *, may_crash: bool) -> TextMatchError:
        translated = from_rpc_error(error)
        if self._hide_auth_errors and isinstance(translated, (Unauthenticated, PermissionDenied)):
            _log.error("the encoder refuses TEXTMATCH_ENCODER_API_KEY", extra={"error": str(translated)})
            message = "the encoder refuses the matcher's API key"
            return DependencyUnavailable(message, retry_delay_seconds=_AUTH_RETRY_SECONDS)
        if type(translated) is not DependencyUnavailable:
            return translated
        error_class = EncoderCrashed if may_crash and _lost_connection(error) else DependencyUnavailable
        message = f"the encoder at {self._target} does not answer: {translated}"
        return error_class(message, retry_delay_seconds=_RETRY_SECONDS)


def _lost_connection(error: grpc.aio.AioRpcError) -> bool:
    """Whether gRPC itself reports the error, and not the encoder."""
    trailers: Any = error.trailing_metadata() or ()
    return error.code() is grpc.StatusCode.UNAVAILABLE and DETAILS_METADATA_KEY not in dict(trailers)
