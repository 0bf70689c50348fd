"""The encoder as the matcher and the workers see it: arrays in, arrays out, our errors only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc

from textmatch import vectors
from textmatch.errors import DependencyUnavailable, ModelMismatch, ModelNotFound
from textmatch.runtime.channel import ReloadingChannel, call_metadata
from textmatch.runtime.grpc_errors import from_rpc_error
from textmatch.runtime.tls import ClientTls
from textmatch.types import EncodeResult, ModelInfo, ModelKind, ScoreResult
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc
from textmatch.vectors import Embeddings
from textmatch.wire.encoding import encode_result, model_info, priority, score_result

Answer = TypeVar("Answer")

_RETRY_SECONDS = 1.0


class EncoderClient:
    """Calls one encoder or, by a `dns:///` target, many in turn. Create it inside a running event loop.

    Every method raises a TextMatchError and nothing else.

    Args:
        api_key: empty if the encoder asks for none.
        tls: None: in the clear. Its files may be replaced.
    """

    def __init__(self, target: str, api_key: str = "", tls: ClientTls | None = None) -> None:
        self._target = target
        self._metadata = call_metadata(api_key)
        self._channel: ReloadingChannel[Any] = ReloadingChannel(target, tls, pb_grpc.EncoderServiceStub)

    async def encode(
        self, texts: Sequence[str], *, is_query: bool, is_bulk: bool, timeout_seconds: float, model: str = ""
    ) -> EncodeResult:
        """Embed texts.

        Args:
            model: the id of the bi-encoder that built the index; empty: the encoder's default one.

        Raises:
            ModelMismatch: that model is not served.
        """
        request = pb.EncodeRequest(
            texts=texts,
            role=pb.ROLE_QUERY if is_query else pb.ROLE_DOCUMENT,
            priority=priority(is_bulk=is_bulk),
            model=model,
        )
        try:
            response = await self._call(self._channel.stub.Encode, request, timeout_seconds)
        except ModelNotFound as error:
            if not model:
                raise
            served = await self.bi_encoders(timeout_seconds=timeout_seconds)
            served_ids = ", ".join(one.model_id for one in served) or "no bi-encoder"
            raise ModelMismatch(index_model_id=model, encoder_model_id=served_ids) from error
        return encode_result([response])

    async def score(
        self, query: str, texts: Sequence[str], *, is_bulk: bool, timeout_seconds: float
    ) -> ScoreResult:
        """Score the query with each text by the default cross-encoder."""
        request = pb.ScoreRequest(
            query=query, texts=texts, scorer=pb.SCORER_CROSS_ENCODER, priority=priority(is_bulk=is_bulk)
        )
        return score_result([await self._call(self._channel.stub.Score, request, timeout_seconds)])

    async def classify(
        self, query: str, embeddings: Embeddings, *, is_bulk: bool, timeout_seconds: float, model: str
    ) -> ScoreResult:
        """Score the query with each (count, dimension) embedding by that bi-encoder's pair classifier."""
        request = pb.ScoreRequest(
            query=query,
            embeddings=vectors.pack(embeddings),
            scorer=pb.SCORER_PAIR_CLASSIFIER,
            priority=priority(is_bulk=is_bulk),
            model=model,
        )
        return score_result([await self._call(self._channel.stub.Score, request, timeout_seconds)])

    async def bi_encoders(self, *, timeout_seconds: float) -> list[ModelInfo]:
        """The bi-encoders that are served, the default one first."""
        answer = await self._call(self._channel.stub.GetModels, pb.GetModelsRequest(), timeout_seconds)
        models = [model_info(message) for message in answer.models]
        return [model for model in models if model.kind is ModelKind.BI_ENCODER]

    async def _call(
        self, method: Callable[..., Awaitable[Answer]], request: object, timeout_seconds: float
    ) -> Answer:
        try:
            return await method(request, timeout=timeout_seconds, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            translated = from_rpc_error(error)
            if type(translated) is DependencyUnavailable:
                message = f"the encoder at {self._target} does not answer: {translated}"
                raise DependencyUnavailable(message, retry_delay_seconds=_RETRY_SECONDS) from error
            raise translated from error

    async def close(self) -> None:
        """Close the channel; running calls are cancelled."""
        await self._channel.close()
