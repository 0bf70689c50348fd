"""An installation in this process: a matcher behind real gRPC, and a worker that works when it is told to."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from redis.asyncio import Redis

from services.matcher.collection_servicer import CollectionServicer
from services.matcher.documents import DocumentsHandler
from services.matcher.duplicates import DuplicateFinder
from services.matcher.ingest import Admission, IngestDependencies, IngestHandler
from services.matcher.matching import Matcher
from services.matcher.reranker import Reranker
from services.matcher.retriever import Retriever
from services.matcher.servicer import MAX_REQUEST_BYTES, METHOD_LIMITS, MatcherServicer
from tests.integration.ingest.indexing import TOMBSTONE_SECONDS, UNLIMITED
from textmatch.collection_store import Collection, CollectionStore
from textmatch.encoder_client import EncoderClient
from textmatch.index.client import connect as connect_qdrant
from textmatch.indexing import Copier
from textmatch.queue import messages
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.depth import QueueDepth
from textmatch.queue.keys import Keys
from textmatch.queue.producer import Producer
from textmatch.queue.redis_client import connect as connect_redis
from textmatch.runtime.auth import ApiKeys
from textmatch.runtime.channel import open_aio_channel
from textmatch.runtime.grpc_errors import from_rpc_error
from textmatch.runtime.server import GrpcServer
from textmatch.v1 import collection_service_pb2 as collection_pb
from textmatch.v1 import collection_service_pb2_grpc as collection_grpc
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc
from workers.batcher import MicroBatcher
from workers.indexer import DualWriter, IndexerDependencies
from workers.retrying_indexer import RetryingIndexer
from workers.tasks import Leases, MessageHandler

_SECONDS = 30.0


class Installation:
    """The processes of one installation, with the connections and caches of one."""

    def __init__(
        self, name: str, redis_url: str, qdrant_url: str, encoder_target: str, keys_file: Path | None = None
    ) -> None:
        self.keys = Keys(name)
        self.redis: Redis = connect_redis(redis_url)
        self.qdrant = connect_qdrant(qdrant_url)
        self.encoder = EncoderClient(encoder_target)
        # A matcher and a worker have a store each.
        self.store = CollectionStore(self.redis, self.qdrant, self.keys)
        self.worker_store = CollectionStore(self.redis, self.qdrant, self.keys)
        self._server = GrpcServer(
            "127.0.0.1",
            0,
            MAX_REQUEST_BYTES,
            api_keys=ApiKeys(keys_file) if keys_file else None,
            method_limits=METHOD_LIMITS,
        )
        self._indexer = RetryingIndexer(5.0)
        self._batcher = MicroBatcher(self._indexer, 2)
        self.handler = MessageHandler(
            self.worker_store,
            self.dependencies,
            self._indexer,
            self._batcher,
            Leases(self.redis, self.keys, 30.0),
            DeadLetters(self.redis, self.keys.letters),
            drain_seconds=1.0,
        )

    async def __aenter__(self) -> Self:
        producer = Producer(self.redis, self.keys)
        dependencies = IngestDependencies(
            producer, Admission(QueueDepth(self.redis, self.keys), UNLIMITED), TOMBSTONE_SECONDS
        )
        servicer = MatcherServicer(
            self.store,
            Matcher(Retriever(self.encoder, 1_000_000), Reranker(self.encoder), 10),
            IngestHandler(dependencies),
            DocumentsHandler(dependencies),
            DuplicateFinder(self.encoder),
            match_timeout_seconds=_SECONDS,
            batch_match_concurrency=4,
        )
        add = pb_grpc.add_MatcherServiceServicer_to_server
        self._server.add(add, servicer, "textmatch.v1.MatcherService")
        add = collection_grpc.add_CollectionServiceServicer_to_server
        collections = CollectionServicer(self.store, self.encoder)
        self._server.add(add, collections, "textmatch.v1.CollectionService")
        self.address = await self._server.start()
        self._channel = open_aio_channel(self.address)
        self.matcher = pb_grpc.MatcherServiceStub(self._channel)
        self.collections = collection_grpc.CollectionServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()
        await self._server.drain(1.0)
        await self._batcher.close()
        self.store.close()
        self.worker_store.close()
        await self.encoder.close()
        await self.qdrant.close()
        await self.redis.aclose()

    def dependencies(self, collection: Collection) -> IndexerDependencies:
        """What the worker indexes with."""
        copier = Copier(collection.index, self.encoder, collection.tombstones, 10.0)
        dual_writer = DualWriter(collection.index, copier, 60.0)
        return IndexerDependencies(collection, self.encoder, dual_writer, 10.0, TOMBSTONE_SECONDS)

    async def call(self, method: Any, request: Any, key: str = "") -> Any:
        """The answer of a unary method.

        Raises:
            TextMatchError: what the server says.
        """
        metadata = [("authorization", f"Bearer {key}")] if key else []
        try:
            return await method(request, timeout=_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def create(self, name: str, **settings: Any) -> collection_pb.Collection:
        """Make a collection."""
        wanted = collection_pb.Collection(name=name, **settings)
        request = collection_pb.CreateCollectionRequest(collection=wanted)
        answer = await self.call(self.collections.CreateCollection, request)
        made: collection_pb.Collection = answer.collection
        return made

    async def delete(self, name: str) -> None:
        """Delete a collection."""
        request = collection_pb.DeleteCollectionRequest(name=name)
        await self.call(self.collections.DeleteCollection, request)

    async def adopt(self, name: str) -> None:
        """Take a collection over."""
        await self.call(self.collections.AdoptCollection, collection_pb.AdoptCollectionRequest(name=name))

    async def ingest(self, collection: str, *documents: pb.Document, key: str = "") -> list[pb.IngestResult]:
        """Send documents in one request."""
        request = pb.IngestDocumentsRequest(documents=documents, collection=collection)
        metadata = [("authorization", f"Bearer {key}")] if key else []
        try:
            call = self.matcher.IngestDocuments(iter([request]), timeout=_SECONDS, metadata=metadata)
            [response] = [one async for one in call]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return list(response.results)

    async def match(self, collection: str, query: str, **options: Any) -> pb.MatchResponse:
        """All documents by their embeddings alone."""
        defaults = {"rerank": pb.RERANK_MODE_NONE, "recall": pb.RECALL_MODE_DENSE, "explain": True}
        wanted = pb.MatchOptions(**{**defaults, **options})
        request = pb.MatchRequest(query=query, options=wanted, collection=collection)
        answer: pb.MatchResponse = await self.call(self.matcher.Match, request)
        return answer

    async def status(self, collection: str, document_id: str = "") -> pb.GetIngestStatusResponse:
        """The status of a collection, and of one document."""
        request = pb.GetIngestStatusRequest(document_id=document_id, collection=collection)
        answer: pb.GetIngestStatusResponse = await self.call(self.matcher.GetIngestStatus, request)
        return answer

    async def queued(self) -> list[tuple[str, Mapping[str, Any] | None]]:
        """Take all messages from the queue, oldest first; returns the arguments of their tasks."""
        arguments = []
        while raw := await self.redis.rpop(self.keys.queue):
            body = messages.unpack(str(raw).encode(), self.keys.queue)["body"]
            [[argument, stamp], _, _] = json.loads(base64.b64decode(body))
            arguments.append((argument, stamp))
        return arguments

    async def work(self) -> None:
        """Handle all messages, one after the other."""
        for argument, stamp in await self.queued():
            assert await self.handler.handle(argument, "a tag", stamp)
