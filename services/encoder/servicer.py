"""EncoderService: messages in, messages out.

Answers to a stream of requests: several worked on at a time, answered in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc

from services.encoder import metrics
from services.encoder.batching import CallContext
from services.encoder.inference import (
    InferenceRequest,
    PairScores,
    Pipeline,
    score_by_cross_encoder,
    score_by_embeddings,
)
from services.encoder.model_registry import Model, ModelRegistry
from services.encoder.validation import check_dimension, check_encode, score_input
from textmatch import vectors
from textmatch.documents import MAX_TEXT_BYTES
from textmatch.errors import InternalError, NotReady, TextMatchError
from textmatch.runtime import logs
from textmatch.runtime.grpc_errors import to_status
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]  # generic in the stubs only


Request = TypeVar("Request")
Response = TypeVar("Response")


async def answer_in_order(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Response]],
    *,
    limit: int,
) -> AsyncIterator[Response]:
    """Yield one answer for each request, each as soon as it and all before it are ready.

    No more than `limit` requests are read ahead of the answers taken, so that a slow reader holds up its own
    stream and nothing else.
    """
    started: asyncio.Queue[asyncio.Future[Response] | None] = asyncio.Queue()
    places = asyncio.Semaphore(limit)

    async def read() -> None:
        try:
            await places.acquire()
            async for request in requests:
                started.put_nowait(asyncio.ensure_future(answer(request)))
                await places.acquire()
        finally:
            started.put_nowait(None)

    reader = asyncio.ensure_future(read())
    try:
        while (pending := await started.get()) is not None:
            yield await pending
            places.release()
        await reader
    finally:
        reader.cancel()
        while not started.empty():
            if (left := started.get_nowait()) is not None:
                left.cancel()


_log = logging.getLogger(__name__)

# Enough to keep the engine busy while a client reads an answer and sends the next batch.
_STREAM_BATCHES_IN_FLIGHT = 4
_LOADING_SECONDS = 2.0


@dataclass(frozen=True)
class _Service:
    """What there is once the models are loaded."""

    models: ModelRegistry
    pipeline: Pipeline


class EncoderServicer(pb_grpc.EncoderServiceServicer):
    """The service as protos/textmatch/v1/encoder_service.proto describes it."""

    def __init__(self, max_texts: int) -> None:
        self._max_texts = max_texts
        self._service: _Service | None = None

    def open(self, models: ModelRegistry, pipeline: Pipeline) -> None:
        """Answer new calls with these models; before the first time every call gets NotReady.

        A call, or a batch of a stream, keeps the models that it began with.
        """
        before = self.models
        self._service = _Service(models, pipeline)
        _show_models(models, before)

    @property
    def models(self) -> ModelRegistry:
        """Those that new calls get."""
        return self._service.models if self._service else ModelRegistry([], [])

    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        return await self._encode(request, _urgency(request.priority, context))

    async def EncodeStream(
        self, request_iterator: AsyncIterator[pb.EncodeStreamRequest], context: Context
    ) -> AsyncIterator[pb.EncodeStreamResponse]:
        of_stream = _urgency(pb.PRIORITY_UNSPECIFIED, context)

        async def answer(request: pb.EncodeStreamRequest) -> pb.EncodeStreamResponse:
            urgency = replace(of_stream, is_bulk=_is_bulk(request.request.priority))
            try:
                return pb.EncodeStreamResponse(response=await self._encode(request.request, urgency))
            except TextMatchError as error:
                return pb.EncodeStreamResponse(error=to_status(error))
            except Exception:  # noqa: BLE001 -- the stream goes on, as for any failed batch
                _log.exception("a batch of a stream failed")
                failure = InternalError(f"internal error; request id {logs.request_id.get()}")
                return pb.EncodeStreamResponse(error=to_status(failure))

        async for response in answer_in_order(request_iterator, answer, limit=_STREAM_BATCHES_IN_FLIGHT):
            yield response

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        service = self._opened()
        wanted = score_input(request, self._max_texts)
        urgency = _urgency(request.priority, context)
        if request.scorer in (pb.SCORER_UNSPECIFIED, pb.SCORER_CROSS_ENCODER):
            cross_encoder = service.models.cross_encoder(request.model)
            return _to_proto(await score_by_cross_encoder(cross_encoder, wanted, urgency, service.pipeline))
        if request.scorer == pb.SCORER_PAIR_CLASSIFIER:
            bi_encoder, scorer = service.models.bi_encoder_with_classifier(request.model)
        else:
            bi_encoder = service.models.bi_encoder(request.model)
            scorer = bi_encoder.model.cosine
        return _to_proto(
            await score_by_embeddings(
                bi_encoder, scorer, wanted, urgency, service.pipeline, max_texts=self._max_texts
            )
        )

    async def GetModels(self, request: pb.GetModelsRequest, context: Context) -> pb.GetModelsResponse:
        limits = pb.Limits(max_texts=self._max_texts, max_text_bytes=MAX_TEXT_BYTES)
        return pb.GetModelsResponse(models=_describe_all(self._opened().models), limits=limits)

    async def _encode(self, request: pb.EncodeRequest, urgency: CallContext) -> pb.EncodeResponse:
        service = self._opened()
        check_encode(request, self._max_texts)
        served = service.models.bi_encoder(request.model)
        dimension = check_dimension(request, served.model.dimension)
        texts, is_query = list(request.texts), request.role == pb.ROLE_QUERY
        work = InferenceRequest(
            model=served.engine_model,
            texts=texts,
            max_tokens=served.model.max_tokens,
            tokenize=lambda: served.model.tokenize(texts, is_query=is_query),
            name_item="texts[{}]".format,
        )
        computed = await service.pipeline.compute(work, urgency)
        started = time.perf_counter()
        embeddings = computed.rows
        if dimension < served.model.dimension:
            embeddings = vectors.normalise(embeddings[:, :dimension])
        response = pb.EncodeResponse(
            embeddings=vectors.pack(embeddings),
            dimension=dimension,
            token_counts=[text.token_count for text in computed.texts],
            truncated=[text.truncated for text in computed.texts],
            model_id=served.model.model_id,
        )
        metrics.STAGE_SECONDS.labels("serialise").observe(time.perf_counter() - started)
        return response

    def _opened(self) -> _Service:
        if self._service is None:
            raise NotReady("the models are loading", retry_delay_seconds=_LOADING_SECONDS)
        return self._service


def _to_proto(scored: PairScores) -> pb.ScoreResponse:
    started = time.perf_counter()
    response = pb.ScoreResponse(
        scores=scored.scores.tolist(),
        raw_scores=scored.raw_scores.tolist(),
        truncated=scored.truncated,
        model_id=scored.model_id,
    )
    metrics.STAGE_SECONDS.labels("serialise").observe(time.perf_counter() - started)
    return response


def _urgency(priority: pb.Priority.ValueType, context: Context) -> CallContext:
    """A caller is an API key, else a connection."""
    remaining_seconds = context.time_remaining()
    return CallContext(
        caller=logs.api_key_name.get() or context.peer(),
        is_bulk=_is_bulk(priority),
        deadline=None if remaining_seconds is None else time.monotonic() + remaining_seconds,
    )


def _is_bulk(priority: pb.Priority.ValueType) -> bool:
    return priority == pb.PRIORITY_BULK


def _show_models(models: ModelRegistry, before: ModelRegistry) -> None:
    shown = _info_labels(models)
    for labels in shown:
        metrics.MODEL_INFO.labels(*labels).set(1)
    for labels in _info_labels(before) - shown:
        metrics.MODEL_INFO.remove(*labels)


def _info_labels(models: ModelRegistry) -> set[tuple[str, ...]]:
    of_kind: list[tuple[str, Model]] = [("bi-encoder", served.model) for served in models.bi_encoders]
    of_kind += [("cross-encoder", served.model) for served in models.cross_encoders]
    return {
        (model.model_id, model.name, kind, model.engine, model.dtype, model.device) for kind, model in of_kind
    }


def _describe_all(models: ModelRegistry) -> list[pb.Model]:
    bi_encoders = [
        pb.Model(
            **_describe(served.model),
            kind=pb.MODEL_KIND_BI_ENCODER,
            dimension=served.model.dimension,
            has_pair_classifier=served.model.pair_classifier is not None,
            is_default=position == 0,
        )
        for position, served in enumerate(models.bi_encoders)
    ]
    cross_encoders = [
        pb.Model(**_describe(served.model), kind=pb.MODEL_KIND_CROSS_ENCODER, is_default=position == 0)
        for position, served in enumerate(models.cross_encoders)
    ]
    return bi_encoders + cross_encoders


def _describe(model: Model) -> dict[str, Any]:
    return {
        "model_id": model.model_id,
        "name": model.name,
        "max_tokens": model.max_tokens,
        "dtype": model.dtype,
        "device": model.device,
    }
