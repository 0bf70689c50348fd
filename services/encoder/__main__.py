"""The encoder process: `python -m services.encoder`. SIGTERM stops it, SIGHUP reloads its models."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import ExitStack
from functools import partial

from services.encoder.batching import EngineModel
from services.encoder.inference import Pipeline
from services.encoder.inference_thread import EngineBroken, InferenceThread
from services.encoder.loading import convert_in_subprocess, convert_models, load_models
from services.encoder.model_registry import ModelRegistry, Reloader
from services.encoder.scheduler import Scheduler
from services.encoder.servicer import EncoderServicer
from services.encoder.settings import EncoderSettings
from services.encoder.validation import max_message_bytes, method_limits
from textmatch.errors import TextMatchError
from textmatch.runtime.logs import set_up_logs
from textmatch.runtime.metrics import serve_metrics
from textmatch.runtime.process import call_in_thread, end_process, run_until_stopped
from textmatch.runtime.server import GrpcServer
from textmatch.runtime.settings import describe, load
from textmatch.runtime.tracing import set_up_tracing
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

_log = logging.getLogger(__name__)

_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["EncoderService"].full_name
# The serving encoder takes precedence over a conversion.
_CONVERSION_NICENESS = 10


def main() -> int:
    """Run until SIGTERM; returns the exit status."""
    parser = argparse.ArgumentParser("python -m services.encoder", description="Serve models over gRPC.")
    parser.add_argument(
        "--convert", action="store_true", help="convert the models for their engine into the cache, and exit"
    )
    arguments = parser.parse_args()
    try:
        settings = load(EncoderSettings)
        if arguments.convert:
            os.nice(_CONVERSION_NICENESS)
            convert_models(settings)
            return 0
        # A call is tokenized in the one thread that has its turn, and not on all cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        set_up_logs("encoder", settings.log_level, settings.log_style)
        set_up_tracing("encoder", settings.otlp_endpoint, settings.trace_sample_ratio)
        asyncio.run(_serve(settings))
    except (TextMatchError, EngineBroken) as error:
        print(f"encoder: {error}", file=sys.stderr)
        return end_process(1)
    return end_process(0)


async def _serve(settings: EncoderSettings) -> None:
    """Listen immediately, answer NotReady while the models load, and drain before the end."""
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
        max_running_calls=settings.max_running_calls,
        method_limits=method_limits(settings.max_texts),
    )
    servicer = EncoderServicer(settings.max_texts)
    server.add(pb_grpc.add_EncoderServiceServicer_to_server, servicer, _SERVICE_NAME)
    if settings.metrics_port:
        serve_metrics(settings.host, settings.metrics_port)
    address = await server.start()
    with ExitStack() as running:
        try:
            await run_until_stopped(_run_models(settings, server, servicer, reloader, running))
        finally:
            await server.drain(settings.drain_seconds)
    _log.info("ended", extra={"address": address})


async def _run_models(
    settings: EncoderSettings,
    server: GrpcServer,
    servicer: EncoderServicer,
    reloader: Reloader,
    running: ExitStack,
) -> None:
    """Load the models and serve them, reloading on request, until cancelled.

    Parts that must run until the last call has ended are entered into the stack `running`.

    Raises:
        TextMatchError: a model is missing or cannot be loaded.
        EngineBroken: a model stopped working.
    """
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    loaded = await call_in_thread(partial(load_models, settings))
    broken: asyncio.Future[BaseException] = loop.create_future()

    def break_off(error: BaseException) -> None:
        if not broken.done():
            broken.set_result(error)

    scheduler = Scheduler(loaded.policy, limit_tokens=settings.queue_tokens, limit_bytes=settings.queue_bytes)
    thread = InferenceThread(
        scheduler,
        prepare_thread=loaded.prepare_thread,
        on_death=lambda error: loop.call_soon_threadsafe(break_off, error),
    )
    pipeline = Pipeline(scheduler)
    running.callback(pipeline.close)
    running.callback(thread.stop, settings.drain_seconds)
    thread.start()
    servicer.open(loaded.models, pipeline)
    await server.set_serving(is_serving=True)
    _log.info("serving", extra={"start_seconds": round(time.monotonic() - started, 2)})

    def served() -> list[EngineModel]:
        return servicer.models.engine_models()

    async def load_again() -> ModelRegistry:
        await convert_in_subprocess(servicer.models)
        return (await call_in_thread(partial(load_models, settings, thread.run))).models

    reloads = reloader.run(load_again, lambda models: servicer.open(models, pipeline))
    tasks = [asyncio.ensure_future(reloads)]
    if settings.watchdog_seconds:
        watch = thread.watch(served, settings.watchdog_seconds, break_off)
        tasks.append(asyncio.ensure_future(watch))
    try:
        error = await broken
    finally:
        for task in tasks:
            task.cancel()
    raise EngineBroken(f"the engine broke: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
