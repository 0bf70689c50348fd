"""`python -m workers`: takes documents from the queue, has them embedded, writes them to the index."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from celery import bootsteps, signals

from textmatch.errors import TextMatchError
from textmatch.index.client import QdrantTls
from textmatch.index.client import connect as connect_qdrant
from textmatch.index.index import Index
from textmatch.index.schema import PayloadIndexes
from textmatch.indexing import Copier
from textmatch.queue.app import make_app
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.depth import QueueGauges
from textmatch.queue.pending import Pending
from textmatch.queue.redis_client import connect as connect_redis
from textmatch.queue.tombstones import Tombstones
from textmatch.runtime.logs import set_up_logs
from textmatch.runtime.metrics import serve_metrics
from textmatch.runtime.settings import describe
from textmatch.runtime.tracing import set_up_tracing
from workers import metrics
from workers.batcher import MicroBatcher
from workers.encoder import WatchfulEncoderClient
from workers.indexer import Dependencies, DualWriter
from workers.retrying_indexer import RetryingIndexer
from workers.settings import WorkerSettings, from_environment
from workers.tasks import EventLoopThread, Leases, MessageHandler, register

_log = logging.getLogger(__name__)

# A batch that cannot be encoded lets others pass after so long.
_PATIENCE_SECONDS = 30.0
_SMALL_MESSAGES_PER_BATCH = 64
# Encoders that are restarted one after another may serve a new model again after so long.
_MIRROR_PATIENCE_SECONDS = 60.0


class ReadyStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Shows whether the consumer takes messages; Celery stops and starts it with the connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """The consumer is connected."""
        metrics.READY.set(1)

    def stop(self, parent: Any) -> None:
        """The connection is lost, or the worker stops."""
        metrics.READY.set(0)


@dataclass(frozen=True)
class WorkerRuntime:
    """What lives in the background loop."""

    handler: MessageHandler
    close: Callable[[], Coroutine[Any, Any, None]]


def main() -> int:
    """Run until SIGTERM; then let running messages end."""
    try:
        settings = from_environment()
        _set_up_logs(settings)
        set_up_tracing("worker", settings.otlp_endpoint, settings.trace_sample_ratio)
        if settings.metrics_port:
            serve_metrics(settings.host, settings.metrics_port)
        background = EventLoopThread()
        parts = background.run(_build(settings))
    except (TextMatchError, OSError) as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    exit_code = _run_celery(settings, parts, background)
    background.run(parts.close())
    background.close()
    _log.info("stopped")
    return exit_code


def _set_up_logs(settings: WorkerSettings) -> None:
    set_up_logs("worker", settings.log_level, settings.log_style)
    # They say two things about every message; at DEBUG the pool also shows its text.
    for noisy in ("celery.worker.strategy", "celery.app.trace", "celery.pool"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    _log.info("starting", extra={"settings": describe(settings)})


async def _build(settings: WorkerSettings) -> WorkerRuntime:
    redis = connect_redis(settings.redis_url)
    encoder = WatchfulEncoderClient(settings.encoder_target, settings.encoder_api_key, settings.client_tls())
    index = Index(
        connect_qdrant(
            settings.qdrant_url,
            settings.qdrant_api_key,
            tls=QdrantTls(settings.qdrant_ca, settings.tls_cert, settings.tls_key),
        ),
        settings.collection_alias,
        PayloadIndexes.parse(settings.payload_indexes),
    )
    pending, dead_letters = Pending(redis), DeadLetters(redis)
    leases = Leases(redis, settings.visibility_timeout_seconds)
    deps = Dependencies(
        encoder=encoder,
        index=index,
        mirrors=DualWriter(
            index,
            Copier(index, encoder, Tombstones(redis), settings.encode_timeout_seconds),
            _MIRROR_PATIENCE_SECONDS,
        ),
        pending=pending,
        tombstones=Tombstones(redis),
        dead_letters=dead_letters,
        encode_timeout_seconds=settings.encode_timeout_seconds,
    )
    indexer = RetryingIndexer(deps, _PATIENCE_SECONDS)
    gathering = MicroBatcher(indexer, settings.concurrency)
    handler = MessageHandler(indexer, gathering, leases, dead_letters, pending, settings.drain_seconds)
    chores = [
        asyncio.create_task(leases.renew_forever()),
        asyncio.create_task(QueueGauges(redis).sample_forever()),
    ]

    async def close() -> None:
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        await gathering.close()
        await encoder.close()
        await index.close()
        await redis.aclose()

    return WorkerRuntime(handler, close)


def _run_celery(settings: WorkerSettings, parts: WorkerRuntime, background: EventLoopThread) -> int:
    app = make_app(
        settings.redis_url,
        batches=settings.concurrency,
        visibility_timeout_seconds=settings.visibility_timeout_seconds,
        sweep_seconds=settings.sweep_seconds,
    )
    app.steps["consumer"].add(ReadyStep)
    register(app, parts.handler, background)

    def stop(**_: object) -> None:
        background.call(parts.handler.stop)

    def keep_our_logs(**_: object) -> None:
        """Celery sets up logs of its own unless somebody listens to this signal."""

    signals.worker_shutting_down.connect(stop)
    signals.setup_logging.connect(keep_our_logs)
    worker = app.Worker(
        hostname=f"worker-{os.getpid()}@{socket.gethostname()}",
        pool="threads",
        # Threads that only wait for their message's batch; transport.py bounds what they hold.
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
