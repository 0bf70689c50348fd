"""MatcherService: converts messages to plain types and back. The other modules do the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from services.matcher.documents import DeleteVersion, DocumentsHandler
from services.matcher.ingest import IngestHandler
from services.matcher.matching import Matcher
from textmatch.collection_store import Collection, CollectionStore
from textmatch.documents import check_texts, text_violation
from textmatch.errors import InvalidInput, TextMatchError, raise_violations
from textmatch.runtime import logs
from textmatch.runtime.tracing import note_collection
from textmatch.types import MatchOptions, MatchResult
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc
from textmatch.wire.documents import (
    ingest_request_from_proto,
    ingest_response_to_proto,
    ingest_status_to_proto,
    to_proto,
)
from textmatch.wire.matching import (
    batch_result_to_proto,
    filter_from_proto,
    options_from_proto,
    result_to_proto,
)

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]  # generic in the stubs only

MAX_QUERIES = 1_000


class MatcherServicer(pb_grpc.MatcherServiceServicer):
    """The service as protos/textmatch/v1/matcher_service.proto describes it."""

    def __init__(
        self,
        store: CollectionStore,
        matcher: Matcher,
        ingest: IngestHandler,
        documents: DocumentsHandler,
        *,
        match_timeout_seconds: float,
        batch_match_concurrency: int,
    ) -> None:
        self._store = store
        self._matcher = matcher
        self._ingest = ingest
        self._documents = documents
        self._match_timeout_seconds = match_timeout_seconds
        self._batch_match_concurrency = batch_match_concurrency

    async def Match(self, request: pb.MatchRequest, context: Context) -> pb.MatchResponse:
        raise_violations([text_violation("query", request.query)])
        options = options_from_proto(request.options)
        deadline = self._match_deadline(context)
        collection = noted(await self._store.get(request.collection))
        result = await self._matcher.match(collection, request.query, options, deadline=deadline)
        return result_to_proto(result, options)

    async def BatchMatch(
        self, request: pb.BatchMatchRequest, context: Context
    ) -> AsyncIterator[pb.BatchMatchResponse]:
        check_texts("queries", request.queries, MAX_QUERIES)
        options = options_from_proto(request.options)
        collection = noted(await self._store.get(request.collection))
        slots = asyncio.Semaphore(self._batch_match_concurrency)

        async def answer(query_index: int) -> pb.BatchMatchResponse:
            async with slots:
                query, deadline = request.queries[query_index], self._match_deadline(context)
                result = await self._answer(collection, query, options, deadline)
                return batch_result_to_proto(query_index, result, options)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(position)) for position in range(len(request.queries))]
            for task in asyncio.as_completed(tasks):
                yield await task

    async def IngestDocuments(
        self, request_iterator: AsyncIterator[pb.IngestDocumentsRequest], context: Context
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        deadline = _deadline(context)
        async for request in request_iterator:
            documents, rejections = ingest_request_from_proto(request)
            collection = noted(await self._store.for_write(request.collection))
            results = await self._ingest.ingest(collection, documents, deadline, request.request_id)
            yield ingest_response_to_proto([*rejections, *results])

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Context) -> pb.GetDocumentResponse:
        collection = noted(await self._store.get(request.collection))
        document = await self._documents.get(collection, request.id)
        return pb.GetDocumentResponse(document=to_proto(document))

    async def DeleteDocuments(
        self, request: pb.DeleteDocumentsRequest, context: Context
    ) -> pb.DeleteDocumentsResponse:
        if bool(request.ids) == request.HasField("filter"):
            raise InvalidInput.of_field("ids", "give either ids or a filter")
        version = request.version if request.HasField("version") else None
        collection = noted(await self._store.for_write(request.collection))
        cut = DeleteVersion(version, request.request_id, _deadline(context))
        if request.ids:
            deleted_count = await self._documents.delete(collection, request.ids, cut)
        else:
            where = filter_from_proto(request.filter, "filter")
            deleted_count = await self._documents.delete_where(collection, where, cut)
        return pb.DeleteDocumentsResponse(deleted_count=deleted_count)

    async def GetIngestStatus(
        self, request: pb.GetIngestStatusRequest, context: Context
    ) -> pb.GetIngestStatusResponse:
        collection = noted(await self._store.get(request.collection))
        return ingest_status_to_proto(await self._documents.status(collection, request.document_id))

    async def _answer(
        self, collection: Collection, query: str, options: MatchOptions, deadline: float
    ) -> MatchResult | TextMatchError:
        try:
            return await self._matcher.match(collection, query, options, deadline=deadline, is_bulk=True)
        except TextMatchError as error:
            return error

    def _match_deadline(self, context: Context) -> float:
        deadline = _deadline(context)
        return time.monotonic() + self._match_timeout_seconds if deadline is None else deadline


def _deadline(context: Context) -> float | None:
    """The caller's deadline on the monotonic clock; None if it has none."""
    remaining_seconds = context.time_remaining()
    return None if remaining_seconds is None else time.monotonic() + remaining_seconds


def noted(collection: Collection) -> Collection:
    """The collection, which the logs and the trace of the call name from now on."""
    logs.collection.set(collection.name)
    note_collection(collection.name)
    return collection
