"""MatcherService: messages in, messages out; the work is done in matching.py and documents.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from services.matcher.documents import DocumentsHandler
from services.matcher.matching import Matcher
from textmatch.documents import check_texts, text_violation
from textmatch.errors import InvalidInput, TextMatchError
from textmatch.types import MatchOptions
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc
from textmatch.wire.matching import batch_result_to_proto, options_from_proto, result_to_proto

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]  # generic in the stubs only

MAX_QUERIES = 1_000


class MatcherServicer(pb_grpc.MatcherServiceServicer):
    """The service as protos/textmatch/v1/matcher_service.proto describes it."""

    def __init__(
        self,
        matcher: Matcher,
        documents: DocumentsHandler,
        *,
        match_timeout_seconds: float,
        batch_match_concurrency: int,
    ) -> None:
        self._matcher = matcher
        self._documents = documents
        self._match_timeout_seconds = match_timeout_seconds
        self._batch_match_concurrency = batch_match_concurrency

    async def Match(self, request: pb.MatchRequest, context: Context) -> pb.MatchResponse:
        if violation := text_violation("query", request.query):
            raise InvalidInput([violation])
        options = options_from_proto(request.options)
        result = await self._matcher.match(request.query, options, deadline=self._deadline(context))
        return result_to_proto(result, options)

    async def BatchMatch(
        self, request: pb.BatchMatchRequest, context: Context
    ) -> AsyncIterator[pb.BatchMatchResponse]:
        check_texts("queries", request.queries, MAX_QUERIES)
        options = options_from_proto(request.options)
        turns = asyncio.Semaphore(self._batch_match_concurrency)

        async def answer(query_index: int) -> pb.BatchMatchResponse:
            async with turns:
                return await self._answer(request, options, query_index, self._deadline(context))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(position)) for position in range(len(request.queries))]
            for task in asyncio.as_completed(tasks):
                yield await task

    async def _answer(
        self, request: pb.BatchMatchRequest, options: MatchOptions, query_index: int, deadline: float
    ) -> pb.BatchMatchResponse:
        try:
            result = await self._matcher.match(
                request.queries[query_index], options, deadline=deadline, is_bulk=True
            )
        except TextMatchError as error:
            return batch_result_to_proto(query_index, error, options)
        return batch_result_to_proto(query_index, result, options)

    async def IngestDocuments(
        self, request_iterator: AsyncIterator[pb.IngestDocumentsRequest], context: Context
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        remaining_seconds = context.time_remaining()
        deadline = None if remaining_seconds is None else time.monotonic() + remaining_seconds
        async for response in self._documents.ingest(request_iterator, deadline):
            yield response

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Context) -> pb.GetDocumentResponse:
        return await self._documents.get(request)

    async def DeleteDocuments(
        self, request: pb.DeleteDocumentsRequest, context: Context
    ) -> pb.DeleteDocumentsResponse:
        return await self._documents.delete(request)

    async def GetIngestStatus(
        self, request: pb.GetIngestStatusRequest, context: Context
    ) -> pb.GetIngestStatusResponse:
        return await self._documents.status(request)

    def _deadline(self, context: Context) -> float:
        remaining_seconds = context.time_remaining()
        if remaining_seconds is None:
            remaining_seconds = self._match_timeout_seconds
        return time.monotonic() + remaining_seconds
