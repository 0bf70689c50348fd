"""`python -m services.matcher`: answers queries and accepts documents."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from redis.asyncio import Redis

from services.matcher.collection_servicer import CollectionServicer
from services.matcher.documents import DocumentsHandler
from services.matcher.duplicates import DuplicateFinder
from services.matcher.ingest import Admission, IngestDependencies, IngestHandler, QueueLimits
from services.matcher.matching import Matcher
from services.matcher.reranker import Reranker
from services.matcher.retriever import Retriever
from services.matcher.servicer import MAX_REQUEST_BYTES, METHOD_LIMITS, MatcherServicer
from services.matcher.settings import MatcherSettings
from textmatch.circuit_breaker import DependencyGuard
from textmatch.collection_store import CollectionStore
from textmatch.encoder_client import EncoderClient
from textmatch.errors import DependencyUnavailable
from textmatch.index.client import check_version_at_start
from textmatch.index.client import connect as connect_qdrant
from textmatch.queue.depth import QueueDepth, QueueGauges
from textmatch.queue.keys import Keys
from textmatch.queue.producer import Producer
from textmatch.queue.redis_client import connect as connect_redis
from textmatch.queue.worker_problems import WorkerProblems
from textmatch.runtime.metrics import serve_metrics
from textmatch.runtime.process import run_service, run_until_stopped, trim_heap
from textmatch.runtime.server import GrpcServer
from textmatch.types import Problem
from textmatch.v1.collection_service_pb2_grpc import add_CollectionServiceServicer_to_server
from textmatch.v1.matcher_service_pb2_grpc import add_MatcherServiceServicer_to_server

_log = logging.getLogger(__name__)

_SERVICE_NAME = "textmatch.v1.MatcherService"
_COLLECTION_SERVICE_NAME = "textmatch.v1.CollectionService"


def main() -> int:
    """Run until SIGTERM, then drain running calls."""
    return run_service("matcher", MatcherSettings, _serve)


async def _serve(settings: MatcherSettings) -> None:
    if settings.metrics_port:
        serve_metrics(settings.host, settings.metrics_port)
    redis = connect_redis(settings.redis_url)
    encoder = EncoderClient(
        settings.encoder_target, settings.encoder_api_key, settings.client_tls(), hide_auth_errors=True
    )
    qdrant = connect_qdrant(
        settings.qdrant_url,
        settings.qdrant_api_key,
        ca=settings.qdrant_ca,
        cert=settings.tls_cert,
        key=settings.tls_key,
    )
    await check_version_at_start(qdrant)
    guards = (redis.guard, qdrant.guard)
    keys = Keys(settings.installation)
    store = CollectionStore(redis, qdrant, keys, replicas=settings.redis_replicas)
    dependencies = _ingest_dependencies(settings, redis, keys)

    server = GrpcServer(
        settings.host,
        settings.port,
        MAX_REQUEST_BYTES,
        api_keys=settings.api_keys(),
        tls=settings.server_tls(),
        connection_age_seconds=settings.connection_age_seconds,
        max_running_calls=settings.max_running_calls,
        method_limits=METHOD_LIMITS,
    )
    servicer = MatcherServicer(
        store,
        Matcher(Retriever(encoder, settings.embedding_cache_bytes), Reranker(encoder), settings.rerank_depth),
        IngestHandler(dependencies),
        DocumentsHandler(dependencies),
        DuplicateFinder(encoder),
        match_timeout_seconds=settings.match_timeout_seconds,
        batch_match_concurrency=settings.batch_match_concurrency,
        problems=partial(_problems, guards, WorkerProblems(redis, keys)),
    )
    server.add(add_MatcherServiceServicer_to_server, servicer, _SERVICE_NAME)
    collections = CollectionServicer(store, encoder)
    server.add(add_CollectionServiceServicer_to_server, collections, _COLLECTION_SERVICE_NAME)
    address = await server.start()
    # Otherwise garbage collections of all imported modules delay calls by up to 40 ms.
    trim_heap()
    await server.set_serving(is_serving=True)
    _log.info("serving", extra={"address": address})
    try:
        await run_until_stopped(
            QueueGauges(redis, keys).sample_forever(),
            server.show_dependencies(guards),
            *(guard.watch_forever() for guard in guards),
        )
    finally:
        await server.drain(settings.drain_seconds)
        await encoder.close()
        store.close()
        await qdrant.close()
        await redis.aclose()


async def _problems(guards: Sequence[DependencyGuard], workers: WorkerProblems) -> tuple[Problem, ...]:
    """What keeps documents from being indexed, or queries from being answered."""
    failing = [
        Problem(guard.name, "", guard.reason, str(guard.error)) for guard in guards if guard.error is not None
    ]
    with suppress(DependencyUnavailable):
        failing += await workers.all()
    return tuple(failing)


def _ingest_dependencies(settings: MatcherSettings, redis: Redis, keys: Keys) -> IngestDependencies:
    limits = QueueLimits(
        settings.max_queued_documents,
        settings.max_queued_bytes,
        settings.max_tombstone_bytes,
        settings.max_dead_letter_bytes,
    )
    return IngestDependencies(
        producer=Producer(redis, keys, settings.redis_replicas),
        admission=Admission(QueueDepth(redis, keys), limits),
        tombstone_seconds=settings.tombstone_seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
