"""A real encoder server on a free loopback port, inside the test's event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from services.encoder.batching import BatchPolicy
from services.encoder.inference import Pipeline
from services.encoder.inference_thread import InferenceThread
from services.encoder.model_registry import ModelRegistry
from services.encoder.scheduler import Scheduler
from services.encoder.servicer import EncoderServicer
from services.encoder.validation import max_message_bytes, method_limits
from textmatch.runtime.channel import open_aio_channel
from textmatch.runtime.server import GrpcServer
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

CPU_POLICY = BatchPolicy(token_budget=1024, bulk_share=0.1, forward_cost_tokens=64)


@dataclass(frozen=True)
class EncoderServer:
    """The running server, and what tests inspect."""

    address: str
    channel: grpc.aio.Channel
    stub: pb_grpc.EncoderServiceAsyncStub
    scheduler: Scheduler
    deaths: list[BaseException]


@asynccontextmanager
async def serve_encoder(
    models: ModelRegistry | None,
    *,
    policy: BatchPolicy = CPU_POLICY,
    max_texts: int = 1024,
    queue_tokens: int = 1_000_000,
) -> AsyncIterator[EncoderServer]:
    """Serve these models; None: as if they were still loading."""
    server = GrpcServer("127.0.0.1", 0, max_message_bytes(max_texts), method_limits=method_limits(max_texts))
    servicer = EncoderServicer(max_texts)
    server.add(pb_grpc.add_EncoderServiceServicer_to_server, servicer, "textmatch.v1.EncoderService")
    address = await server.start()
    scheduler = Scheduler(policy, limit_tokens=queue_tokens)
    deaths: list[BaseException] = []
    thread = InferenceThread(scheduler, prepare_thread=lambda: None, on_death=deaths.append)
    pipeline = Pipeline(scheduler)
    thread.start()
    if models is not None:
        servicer.open(models, pipeline)
        await server.set_serving(is_serving=True)
    channel = open_aio_channel(address)
    try:
        yield EncoderServer(address, channel, pb_grpc.EncoderServiceStub(channel), scheduler, deaths)
    finally:
        await channel.close()
        await server.drain(5)
        thread.stop()
        pipeline.close()
