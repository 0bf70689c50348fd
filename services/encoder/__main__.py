"""The encoder: `python -m services.encoder`. SIGTERM ends it, SIGHUP makes it load its models once more."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from services.encoder.batching import run_inline
from services.encoder.hot_reload import Reloader
from services.encoder.inference import EngineBroken, InferenceThread, Pipeline
from services.encoder.loading import convert_apart, find_models
from services.encoder.scheduler import Scheduler
from services.encoder.servicer import EncoderServicer
from services.encoder.settings import EncoderSettings, from_environment
from services.encoder.validation import max_message_bytes
from textmatch.errors import TextMatchError
from textmatch.runtime.logs import set_up_logs
from textmatch.runtime.metrics import serve_metrics
from textmatch.runtime.process import run_until_stopped
from textmatch.runtime.server import GrpcServer, PortTaken
from textmatch.runtime.settings import describe
from textmatch.runtime.tracing import set_up_tracing
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from services.encoder.batching import RunPass
    from services.encoder.loading import Loaded
    from services.encoder.model_registry import ModelRegistry

_log = logging.getLogger(__name__)

_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["EncoderService"].full_name


def main() -> int:
    """Run until SIGTERM; returns the exit status."""
    try:
        settings = from_environment()
        set_up_logs("encoder", settings.log_level, settings.log_style)
        set_up_tracing("encoder", settings.otlp_endpoint, settings.trace_sample_ratio)
        asyncio.run(_serve(settings))
    except (TextMatchError, EngineBroken) as error:
        print(f"encoder: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: EncoderSettings) -> None:
    _log.info("starting", extra=describe(settings))
    reloader = Reloader()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.request)
    server = GrpcServer(
        settings.host,
        settings.port,
        max_message_bytes(settings.max_texts),
        api_keys=settings.api_keys(),
        tls=settings.server_tls(),
        connection_age_seconds=settings.connection_age_seconds,
    )
    servicer = EncoderServicer(settings.max_texts)
    server.add(pb_grpc.add_EncoderServiceServicer_to_server, servicer, _SERVICE_NAME)
    if settings.metrics_port:
        _serve_metrics(settings.host, settings.metrics_port)
    address = await server.start()
    with ExitStack() as running:
        try:
            await run_until_stopped(_work(settings, server, servicer, reloader, running))
        finally:
            await server.drain(settings.drain_seconds)
    _log.info("ended", extra={"address": address})


async def _work(
    settings: EncoderSettings,
    server: GrpcServer,
    servicer: EncoderServicer,
    reloader: Reloader,
    running: ExitStack,
) -> None:
    """Load the models, then serve, and reload them when asked to, until cancelled.

    Args:
        running: what is to be ended once the last call has ended.

    Raises:
        TextMatchError: a model is missing or cannot be loaded.
        EngineBroken: a model stopped working.
    """
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    loaded = await asyncio.to_thread(_load, settings, run_inline)
    broken: asyncio.Future[BaseException] = loop.create_future()
    waiting = Scheduler(loaded.policy, limit_tokens=settings.queue_tokens)
    waiting.note_speed(*loaded.speed)
    engine = InferenceThread(
        waiting,
        prepare_thread=loaded.prepare_thread,
        on_death=lambda error: loop.call_soon_threadsafe(broken.set_result, error),
    )
    pipeline = Pipeline(waiting)
    running.callback(pipeline.close)
    running.callback(engine.stop)
    engine.start()
    servicer.open(loaded.models, pipeline)
    await server.set_serving(is_serving=True)
    _log.info("serving", extra={"start_seconds": round(time.monotonic() - started, 2)})

    async def load_again() -> ModelRegistry:
        await convert_apart(servicer.models)
        return (await asyncio.to_thread(_load, settings, engine.run)).models

    def serve(models: ModelRegistry) -> None:
        servicer.open(models, pipeline)

    reloading = asyncio.ensure_future(reloader.run(load_again, serve))
    try:
        error = await broken
    finally:
        reloading.cancel()
    raise EngineBroken(f"the engine broke: {error}") from error


def _serve_metrics(host: str, port: int) -> None:
    try:
        serve_metrics(host, port)
    except OSError as error:
        raise PortTaken(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error


def _load(settings: EncoderSettings, run_pass: RunPass) -> Loaded:
    found = find_models(settings)
    # May take seconds, if torch is needed: meanwhile the port is bound and callers are told to come back.
    from services.encoder.loading import load_models

    return load_models(found, settings, run_pass)


if __name__ == "__main__":
    sys.exit(main())
