"""`python -m workers`: take documents from the queue, embed them, and write them to the index."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from contextlib import AsyncExitStack
from typing import Any

from celery import bootsteps, signals

from textmatch.collection_store import Collection, CollectionStore
from textmatch.encoder_client import EncoderClient
from textmatch.errors import TextMatchError
from textmatch.index.client import check_version_at_start
from textmatch.index.client import connect as connect_qdrant
from textmatch.indexing import Copier
from textmatch.queue.app import make_app
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.depth import QueueGauges
from textmatch.queue.keys import Keys
from textmatch.queue.redis_client import connect as connect_redis
from textmatch.runtime.logs import set_up_logs
from textmatch.runtime.metrics import serve_metrics
from textmatch.runtime.settings import describe, load
from textmatch.runtime.tracing import set_up_tracing
from workers import metrics
from workers.batcher import MicroBatcher
from workers.indexer import DualWriter, IndexerDependencies
from workers.retrying_indexer import RetryingIndexer
from workers.settings import WorkerSettings
from workers.tasks import EventLoopThread, Leases, MessageHandler, register

_log = logging.getLogger(__name__)

# How long a batch is retried before its message goes to the end of the queue.
_RETRY_BUDGET_SECONDS = 30.0
_SMALL_MESSAGES_PER_BATCH = 64
# How long some encoders may not serve a new model during a rolling restart.
_UNSERVED_SECONDS = 60.0


class ReadyStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Reports whether the consumer takes messages; Celery stops and starts this step with its connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """The consumer is connected."""
        metrics.READY.set(1)

    def stop(self, parent: Any) -> None:
        """The connection is lost, or the worker stops."""
        metrics.READY.set(0)


def main() -> int:
    """Run until SIGTERM, then finish running messages."""
    try:
        settings = load(WorkerSettings)
        _set_up_logs(settings)
        set_up_tracing("worker", settings.otlp_endpoint, settings.trace_sample_ratio)
        if settings.metrics_port:
            serve_metrics(settings.host, settings.metrics_port)
        loop = EventLoopThread()
        resources = AsyncExitStack()
        handler = loop.run(_build(settings, resources))
    except (TextMatchError, OSError) as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    exit_code = _run_celery(settings, handler, loop)
    loop.run(resources.aclose())
    loop.close()
    _log.info("stopped")
    return exit_code


def _set_up_logs(settings: WorkerSettings) -> None:
    set_up_logs("worker", settings.log_level, settings.log_style)
    # These loggers log every message twice, and at DEBUG the pool also logs its text.
    for noisy in ("celery.worker.strategy", "celery.app.trace", "celery.pool"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    _log.info("starting", extra={"settings": describe(settings)})


async def _build(settings: WorkerSettings, resources: AsyncExitStack) -> MessageHandler:
    """Build everything that lives in the event loop; `resources` closes it, the last one first."""
    redis = connect_redis(settings.redis_url)
    resources.push_async_callback(redis.aclose)
    encoder = EncoderClient(
        settings.encoder_target, settings.encoder_api_key, settings.client_tls(), detect_crashes=True
    )
    resources.push_async_callback(encoder.close)
    qdrant = connect_qdrant(
        settings.qdrant_url,
        settings.qdrant_api_key,
        ca=settings.qdrant_ca,
        cert=settings.tls_cert,
        key=settings.tls_key,
    )
    resources.push_async_callback(qdrant.close)
    await check_version_at_start(qdrant)
    keys = Keys(settings.installation)
    store = CollectionStore(redis, qdrant, keys)
    resources.callback(store.close)
    timeout_seconds = settings.encode_timeout_seconds

    def make_dependencies(collection: Collection) -> IndexerDependencies:
        copier = Copier(collection.index, encoder, collection.tombstones, timeout_seconds)
        dual_writer = DualWriter(collection.index, copier, _UNSERVED_SECONDS)
        return IndexerDependencies(collection, encoder, dual_writer, timeout_seconds)

    indexer = RetryingIndexer(_RETRY_BUDGET_SECONDS)
    batcher = MicroBatcher(indexer, settings.concurrency)
    resources.push_async_callback(batcher.close)
    leases = Leases(redis, keys, settings.visibility_timeout_seconds)
    for forever in (leases.renew_forever(), QueueGauges(redis, keys).sample_forever()):
        resources.push_async_callback(_cancel, asyncio.create_task(forever))
    unreadable = DeadLetters(redis, keys.letters)
    return MessageHandler(
        store, make_dependencies, indexer, batcher, leases, unreadable, settings.drain_seconds
    )


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _run_celery(settings: WorkerSettings, handler: MessageHandler, loop: EventLoopThread) -> int:
    app = make_app(
        settings.redis_url,
        Keys(settings.installation),
        batches=settings.concurrency,
        visibility_timeout_seconds=settings.visibility_timeout_seconds,
        sweep_seconds=settings.sweep_seconds,
    )
    app.steps["consumer"].add(ReadyStep)
    register(app, handler, loop)

    def stop(**_: object) -> None:
        loop.call_soon(handler.stop)

    def keep_our_logs(**_: object) -> None:
        """Celery sets up its own logs unless this signal has a receiver."""

    signals.worker_shutting_down.connect(stop)
    signals.setup_logging.connect(keep_our_logs)
    worker = app.Worker(
        hostname=f"worker-{os.getpid()}@{socket.gethostname()}",
        pool="threads",
        # Each thread only waits for its message's batch. textmatch/queue/transport.py limits the messages.
        concurrency=settings.concurrency * _SMALL_MESSAGES_PER_BATCH,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())
