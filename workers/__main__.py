"""`python -m workers`: take documents from the queue, embed them, and write them to the index."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
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
from textmatch.queue.depth import QueueDepth, QueueGauges
from textmatch.queue.keys import Keys
from textmatch.queue.redis_client import connect as connect_redis
from textmatch.queue.worker_problems import WorkerProblems
from textmatch.runtime.logs import set_up_logs
from textmatch.runtime.metrics import serve_metrics
from textmatch.runtime.settings import describe, load
from textmatch.runtime.tracing import set_up_tracing
from workers.batcher import MicroBatcher
from workers.health import Progress, WorkerHealth
from workers.indexer import DualWriter, IndexerDependencies
from workers.pauses import Pauses
from workers.retrying_indexer import RetryingIndexer
from workers.settings import WorkerSettings
from workers.tasks import EventLoopThread, Leases, MessageHandler, register

_log = logging.getLogger(__name__)

# How long a batch is retried before its message goes to the end of the queue.
_RETRY_BUDGET_SECONDS = 30.0
_SMALL_MESSAGES_PER_BATCH = 64
# How long some encoders may not serve a new model during a rolling restart.
_UNSERVED_SECONDS = 60.0


def _connection_step(progress: Progress) -> type:
    """A step that Celery starts and stops with the consumer's connection."""

    class ConnectionStep(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            progress.connected(is_connected=True)

        def stop(self, parent: Any) -> None:
            progress.connected(is_connected=False)

    return ConnectionStep


@dataclass(frozen=True)
class _Worker:
    handler: MessageHandler
    health: WorkerHealth
    progress: Progress


def main() -> int:
    """Run until SIGTERM, then finish running messages."""
    try:
        settings = load(WorkerSettings)
        _set_up_logs(settings)
        set_up_tracing("worker", settings.otlp_endpoint, settings.trace_sample_ratio)
        loop = EventLoopThread()
        resources = AsyncExitStack()
        worker = loop.run(_build(settings, resources))
        if settings.metrics_port:
            checks = {"/ready": worker.health.readiness, "/live": worker.health.liveness}
            serve_metrics(settings.host, settings.metrics_port, checks)
    except (TextMatchError, OSError) as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    exit_code = _run_celery(settings, worker, loop)
    loop.run(resources.aclose())
    loop.close()
    _log.info("stopped")
    return exit_code


def _set_up_logs(settings: WorkerSettings) -> None:
    set_up_logs("worker", settings.log_level, settings.log_style)
    # These loggers log every message twice, and at DEBUG the pool also logs its text.
    for noisy in ("celery.worker.strategy", "celery.pool"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Celery logs the text of each message that is put back, with a traceback.
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)
    _log.info("starting", extra={"settings": describe(settings)})


async def _build(settings: WorkerSettings, resources: AsyncExitStack) -> _Worker:
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
        return IndexerDependencies(
            collection, encoder, dual_writer, timeout_seconds, settings.tombstone_seconds
        )

    pauses, progress = Pauses(), Progress()
    indexer = RetryingIndexer(_RETRY_BUDGET_SECONDS, pauses, progress.note)
    batcher = MicroBatcher(indexer, settings.concurrency)
    resources.push_async_callback(batcher.close)
    leases = Leases(redis, keys, settings.visibility_timeout_seconds)
    health = WorkerHealth(
        _name(),
        progress,
        pauses,
        (redis.guard, qdrant.guard),
        QueueDepth(redis, keys),
        WorkerProblems(redis, keys),
        stall_seconds=settings.stall_seconds,
        busy_seconds=settings.stall_seconds + 2 * timeout_seconds,
    )
    for forever in (
        leases.renew_forever(),
        QueueGauges(redis, keys).sample_forever(),
        health.watch_forever(),
        redis.guard.watch_forever(),
        qdrant.guard.watch_forever(),
    ):
        resources.push_async_callback(_cancel, asyncio.create_task(forever))
    unreadable = DeadLetters(redis, keys.letters)
    handler = MessageHandler(
        store,
        make_dependencies,
        indexer,
        batcher,
        leases,
        unreadable,
        settings.drain_seconds,
        progress,
    )
    return _Worker(handler, health, progress)


def _name() -> str:
    return f"worker-{os.getpid()}@{socket.gethostname()}"


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _run_celery(settings: WorkerSettings, worker: _Worker, loop: EventLoopThread) -> int:
    app = make_app(
        settings.redis_url,
        Keys(settings.installation),
        batches=settings.concurrency,
        visibility_timeout_seconds=settings.visibility_timeout_seconds,
        sweep_seconds=settings.sweep_seconds,
        intake=worker.handler.intake,
    )
    app.steps["consumer"].add(_connection_step(worker.progress))
    register(app, worker.handler, loop)

    def stop(**_: object) -> None:
        loop.call_soon(worker.handler.stop)

    def keep_our_logs(**_: object) -> None:
        """Celery sets up its own logs unless this signal has a receiver."""

    signals.worker_shutting_down.connect(stop)
    signals.setup_logging.connect(keep_our_logs)
    celery_worker = app.Worker(
        hostname=_name(),
        pool="threads",
        # Each thread only waits for its message's batch. textmatch/queue/transport.py limits the messages.
        concurrency=settings.concurrency * _SMALL_MESSAGES_PER_BATCH,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    celery_worker.start()
    return int(celery_worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())
