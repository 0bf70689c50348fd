"""EncoderService: checks requests, runs them through the pipeline, and converts results to messages."""

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
from services.encoder.inference import PairScores, Pipeline
from services.encoder.model_registry import ModelRegistry, ServedModel
from services.encoder.validation import (
    check_dimension,
    check_enum,
    encode_input,
    score_input,
    stored_embeddings,
    truncation,
)
from textmatch import vectors
from textmatch.documents import MAX_TEXT_BYTES
from textmatch.errors import InternalError, InvalidInput, NotReady, TextMatchError
from textmatch.runtime import logs
from textmatch.runtime.grpc_errors import to_status
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    GrpcContext: TypeAlias = grpc.aio.ServicerContext[Any, Any]  # generic in the stubs only

Request = TypeVar("Request")
Response = TypeVar("Response")

_log = logging.getLogger(__name__)

# Enough to keep the models busy while a client reads an answer and sends the next batch.
_STREAM_BATCHES_IN_FLIGHT = 4
_LOADING_RETRY_DELAY_SECONDS = 2.0
_LANES = ("interactive", "bulk")


@dataclass(frozen=True)
class _Service:
    """The models and the pipeline; exists once the models are loaded."""

    models: ModelRegistry
    pipeline: Pipeline


class EncoderServicer(pb_grpc.EncoderServiceServicer):
    """The service that protos/textmatch/v1/encoder_service.proto describes."""

    def __init__(self, max_texts: int) -> None:
        self._max_texts = max_texts
        self._service: _Service | None = None

    def open(self, models: ModelRegistry, pipeline: Pipeline) -> None:
        """Answer new calls with these models; before the first `open` every call gets NotReady.

        A call, or a batch of a stream, keeps the models that it began with.
        """
        old = _info_labels(self.models)
        self._service = _Service(models, pipeline)
        new = _info_labels(models)
        for labels in new:
            metrics.MODEL_INFO.labels(*labels).set(1)
        for entry in (*models.bi_encoders, *models.cross_encoders):
            engine_model = entry.engine_model
            for lane in _LANES:
                speed = metrics.MODEL_TOKENS_PER_SECOND.labels(engine_model.model_id, lane)
                speed.set(engine_model.tokens_per_second)
        for labels in old - new:
            metrics.MODEL_INFO.remove(*labels)
        for model_id in {labels[0] for labels in old} - {labels[0] for labels in new}:
            for lane in _LANES:
                metrics.MODEL_TOKENS_PER_SECOND.remove(model_id, lane)

    @property
    def models(self) -> ModelRegistry:
        """The models that new calls use."""
        return self._service.models if self._service else ModelRegistry([], [])

    async def Encode(self, request: pb.EncodeRequest, context: GrpcContext) -> pb.EncodeResponse:
        return await self._encode(request, _call_context(request.priority, context))

    async def EncodeStream(
        self, request_iterator: AsyncIterator[pb.EncodeStreamRequest], context: GrpcContext
    ) -> AsyncIterator[pb.EncodeStreamResponse]:
        stream = _call_context(pb.PRIORITY_UNSPECIFIED, context)

        async def answer(request: pb.EncodeStreamRequest) -> pb.EncodeStreamResponse:
            call = replace(stream, is_bulk=request.request.priority == pb.PRIORITY_BULK)
            try:
                return pb.EncodeStreamResponse(response=await self._encode(request.request, call))
            except TextMatchError as error:
                return pb.EncodeStreamResponse(error=to_status(error))
            except Exception:  # noqa: BLE001 -- the stream goes on, as after any failed batch
                _log.exception("a batch of a stream failed")
                failure = InternalError(f"internal error; request id {logs.request_id.get()}")
                return pb.EncodeStreamResponse(error=to_status(failure))

        async for response in answer_in_order(request_iterator, answer, limit=_STREAM_BATCHES_IN_FLIGHT):
            yield response

    async def Score(self, request: pb.ScoreRequest, context: GrpcContext) -> pb.ScoreResponse:
        service = self._opened()
        check_enum("scorer", request.scorer, pb.Scorer.values())
        check_enum("priority", request.priority, pb.Priority.values())
        wanted = score_input(
            query=request.query,
            texts=list(request.texts),
            pairs=[(pair.first, pair.second) for pair in request.pairs],
            has_embeddings=bool(request.embeddings),
            max_texts=self._max_texts,
            truncation=truncation("truncate", request.truncate),
        )
        call = _call_context(request.priority, context)
        if request.scorer in (pb.SCORER_UNSPECIFIED, pb.SCORER_CROSS_ENCODER):
            cross_encoder = service.models.cross_encoder(request.model)
            if request.embeddings:
                raise InvalidInput.of_field("embeddings", "a cross-encoder reads texts, not embeddings")
            return _to_proto(await service.pipeline.score_by_cross_encoder(cross_encoder, wanted, call))
        if request.scorer == pb.SCORER_PAIR_CLASSIFIER:
            bi_encoder, scorer = service.models.bi_encoder_with_classifier(request.model)
        else:
            bi_encoder = service.models.bi_encoder(request.model)
            scorer = bi_encoder.model.cosine
        stored = None
        if request.embeddings:
            stored = stored_embeddings(request.embeddings, bi_encoder.model.dimension, self._max_texts)
        return _to_proto(await service.pipeline.score_by_embeddings(bi_encoder, scorer, wanted, stored, call))

    async def GetModels(self, request: pb.GetModelsRequest, context: GrpcContext) -> pb.GetModelsResponse:
        models = self._opened().models
        messages = [
            _model_message(
                entry.model,
                kind=pb.MODEL_KIND_BI_ENCODER,
                dimension=entry.model.dimension,
                has_pair_classifier=entry.model.pair_classifier is not None,
                is_default=position == 0,
            )
            for position, entry in enumerate(models.bi_encoders)
        ]
        messages += [
            _model_message(
                entry.model,
                kind=pb.MODEL_KIND_CROSS_ENCODER,
                labels=entry.model.labels,
                is_default=position == 0,
            )
            for position, entry in enumerate(models.cross_encoders)
        ]
        limits = pb.Limits(max_texts=self._max_texts, max_text_bytes=MAX_TEXT_BYTES)
        return pb.GetModelsResponse(models=messages, limits=limits)

    async def _encode(self, request: pb.EncodeRequest, call: CallContext) -> pb.EncodeResponse:
        service = self._opened()
        wanted = encode_input(request, self._max_texts)
        entry = service.models.bi_encoder(request.model)
        model = entry.model
        if wanted.dimension is not None:
            check_dimension(wanted.dimension, model.dimension)
        result = await service.pipeline.embed(entry, wanted, call)
        started = time.perf_counter()
        embeddings = wanted.shaped(result.rows)
        response = pb.EncodeResponse(
            embeddings=vectors.pack(embeddings),
            dimension=embeddings.shape[1],
            token_counts=[text.token_count for text in result.texts],
            truncated=[text.truncated for text in result.texts],
            model_id=model.model_id,
        )
        metrics.STAGE_SECONDS.labels("serialise").observe(time.perf_counter() - started)
        return response

    def _opened(self) -> _Service:
        if self._service is None:
            raise NotReady("the models are loading", retry_delay_seconds=_LOADING_RETRY_DELAY_SECONDS)
        return self._service


async def answer_in_order(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Response]],
    *,
    limit: int,
) -> AsyncIterator[Response]:
    """Process several requests at a time and yield their answers in the order of the requests.

    At most `limit` requests are read ahead of the answers: a slow reader delays only its own stream.
    """
    started: asyncio.Queue[asyncio.Future[Response] | None] = asyncio.Queue()
    slots = asyncio.Semaphore(limit)

    async def read() -> None:
        try:
            await slots.acquire()
            async for request in requests:
                started.put_nowait(asyncio.ensure_future(answer(request)))
                await slots.acquire()
        finally:
            started.put_nowait(None)

    reader = asyncio.ensure_future(read())
    try:
        while (pending := await started.get()) is not None:
            yield await pending
            slots.release()
        await reader
    finally:
        reader.cancel()
        while not started.empty():
            if (left := started.get_nowait()) is not None:
                left.cancel()


def _to_proto(scored: PairScores) -> pb.ScoreResponse:
    started = time.perf_counter()
    response = pb.ScoreResponse(
        scores=scored.scores.tolist(),
        raw_scores=scored.raw_scores.tolist(),
        truncated=scored.truncated,
        model_id=scored.model_id,
        labels=scored.labels,
        class_scores=scored.class_scores.ravel().tolist() if scored.class_scores is not None else (),
    )
    metrics.STAGE_SECONDS.labels("serialise").observe(time.perf_counter() - started)
    return response


def _call_context(priority: pb.Priority.ValueType, context: GrpcContext) -> CallContext:
    """The caller is the API key if there is one, else the connection."""
    remaining_seconds = context.time_remaining()
    return CallContext(
        caller=logs.api_key_name.get() or context.peer(),
        is_bulk=priority == pb.PRIORITY_BULK,
        deadline=None if remaining_seconds is None else time.monotonic() + remaining_seconds,
    )


def _info_labels(models: ModelRegistry) -> set[tuple[str, ...]]:
    """The labels of `textmatch_encoder_model_info`, one tuple per model."""
    kinds = ["bi-encoder"] * len(models.bi_encoders) + ["cross-encoder"] * len(models.cross_encoders)
    return {
        (model.model_id, model.name, kind, model.engine, model.dtype, model.device)
        for kind, model in zip(kinds, models.all_models(), strict=True)
    }


def _model_message(model: ServedModel, **fields: Any) -> pb.Model:
    return pb.Model(
        model_id=model.model_id,
        name=model.name,
        max_tokens=model.max_tokens,
        dtype=model.dtype,
        device=model.device,
        **fields,
    )
