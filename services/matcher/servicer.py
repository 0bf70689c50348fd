"""MatcherService: converts messages to plain types and back. The other modules do the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from services.matcher.documents import DeleteScope, DocumentsHandler
from services.matcher.duplicates import DuplicateFinder
from services.matcher.ingest import IngestHandler
from services.matcher.matching import Matcher
from textmatch.collection_store import Collection, CollectionStore
from textmatch.documents import MAX_ID_BYTES, check_item_count, id_violation, text_violation
from textmatch.errors import AnswerIncomplete, InvalidInput, TextMatchError, Violation, raise_violations
from textmatch.queue.dead_letters import DeadLetters
from textmatch.runtime import logs
from textmatch.runtime.auth import charge_count, charge_items, charge_match
from textmatch.runtime.request_limits import RequestLimits
from textmatch.runtime.tracing import note_collection
from textmatch.time_slices import in_slices
from textmatch.types import MAX_EXCLUDED_IDS, MatchOptions, MatchResult, Problem
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc
from textmatch.wire.documents import (
    IngestRequest,
    ingest_request_from_proto,
    ingest_response_to_proto,
    ingest_status_to_proto,
    to_proto,
)
from textmatch.wire.duplicates import duplicate_options, page_to_proto
from textmatch.wire.filters import MAX_FILTER_BYTES, filter_from_proto
from textmatch.wire.listing import (
    documents_by_id_to_proto,
    documents_page_to_proto,
    fields_to_read,
    letters_page_to_proto,
    page_size,
)
from textmatch.wire.matching import batch_result_to_proto, options_from_proto, result_to_proto

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]  # generic in the stubs only

DeadLettersRequest: TypeAlias = (
    pb.ListDeadLettersRequest | pb.ReplayDeadLettersRequest | pb.DropDeadLettersRequest
)

MAX_QUERIES = 1_000
# A filter, and all other options: a thousand ids of 512 bytes.
_FILTER_BYTES = MAX_FILTER_BYTES + 1024
_OPTIONS_BYTES = MAX_FILTER_BYTES + MAX_EXCLUDED_IDS * (MAX_ID_BYTES + 4) + 2048


def _with_filter(field_number: int, max_bytes: int = _FILTER_BYTES + 4 * 1024) -> RequestLimits:
    """The limits of a request that has a filter in a field."""
    return RequestLimits(max_bytes, part_bytes={field_number: _FILTER_BYTES})


def _of_service(service: str, limits: Mapping[str, RequestLimits]) -> dict[str, RequestLimits]:
    return {f"/textmatch.v1.{service}/{method}": one for method, one in limits.items()}


# For all services of the matcher.
METHOD_LIMITS = {
    **_of_service(
        "MatcherService",
        {
            # A query that is too large is parsed, so that the error says how large it is.
            "Match": RequestLimits(
                5 * 1024**2, part_bytes={pb.MatchRequest.OPTIONS_FIELD_NUMBER: _OPTIONS_BYTES}
            ),
            "BatchMatch": RequestLimits(
                5 * 1024**2, part_bytes={pb.BatchMatchRequest.OPTIONS_FIELD_NUMBER: _OPTIONS_BYTES}
            ),
            "FindDuplicates": _with_filter(pb.FindDuplicatesRequest.FILTER_FIELD_NUMBER),
            "IngestDocuments": RequestLimits(8 * 1024**2, parse=IngestRequest),
            "GetDocument": RequestLimits(16 * 1024),
            "GetDocuments": RequestLimits(1024**2),
            "ListDocuments": _with_filter(pb.ListDocumentsRequest.FILTER_FIELD_NUMBER),
            "CountDocuments": _with_filter(pb.CountDocumentsRequest.FILTER_FIELD_NUMBER),
            "ListDeadLetters": RequestLimits(4 * 1024),
            "ReplayDeadLetters": RequestLimits(1024**2),
            "DropDeadLetters": RequestLimits(1024**2),
            "DeleteDocuments": _with_filter(pb.DeleteDocumentsRequest.FILTER_FIELD_NUMBER, 1024**2),
            "GetIngestStatus": RequestLimits(1024**2),
        },
    ),
    **_of_service(
        "CollectionService",
        {
            "CreateCollection": RequestLimits(64 * 1024),
            "GetCollection": RequestLimits(1024),
            "ListCollections": RequestLimits(1024),
            "DeleteCollection": RequestLimits(1024),
            "AdoptCollection": RequestLimits(1024),
        },
    ),
}
# gRPC refuses larger requests before it has read them, but without details.
MAX_REQUEST_BYTES = 2 * max(limits.max_bytes for limits in METHOD_LIMITS.values())


class MatcherServicer(pb_grpc.MatcherServiceServicer):
    """The service as protos/textmatch/v1/matcher_service.proto describes it.

    Args:
        problems: of stores and workers, as GetIngestStatus returns them.
    """

    def __init__(
        self,
        store: CollectionStore,
        matcher: Matcher,
        ingest: IngestHandler,
        documents: DocumentsHandler,
        duplicates: DuplicateFinder,
        *,
        match_timeout_seconds: float,
        batch_match_concurrency: int,
        problems: Callable[[], Awaitable[tuple[Problem, ...]]] | None = None,
    ) -> None:
        self._store = store
        self._matcher = matcher
        self._ingest = ingest
        self._documents = documents
        self._duplicates = duplicates
        self._match_timeout_seconds = match_timeout_seconds
        self._batch_match_concurrency = batch_match_concurrency
        self._problems = problems or _no_problems

    async def Match(self, request: pb.MatchRequest, context: Context) -> pb.MatchResponse:
        if not request.document_id:
            raise_violations([text_violation("query", request.query)])
        elif request.query:
            raise InvalidInput.of_field("document_id", "give either a query or a document_id")
        else:
            raise_violations([id_violation("document_id", request.document_id)])
        options = options_from_proto(request.options)
        deadline = self._match_deadline(context)
        collection = noted(await self._store.get(request.collection))
        result = await self._matcher.match(
            collection, request.query, options, deadline=deadline, document_id=request.document_id
        )
        return await result_to_proto(_charged(result, options), options)

    async def BatchMatch(
        self, request: pb.BatchMatchRequest, context: Context
    ) -> AsyncIterator[pb.BatchMatchResponse]:
        queries = await _checked_queries(request)
        options = options_from_proto(request.options)
        collection = noted(await self._store.get(request.collection))
        slots = asyncio.Semaphore(self._batch_match_concurrency)
        answered: asyncio.Queue[asyncio.Task[pb.BatchMatchResponse]] = asyncio.Queue()
        tasks: list[asyncio.Task[pb.BatchMatchResponse]] = []

        async def answer(query_index: int) -> pb.BatchMatchResponse:
            async with slots:
                deadline = self._match_deadline(context)
                result = await self._answer(collection, queries[query_index], options, deadline)
                return await batch_result_to_proto(query_index, result, options)

        try:
            async for position in in_slices(range(len(queries))):
                tasks.append(asyncio.create_task(answer(position)))
                tasks[-1].add_done_callback(answered.put_nowait)
            for _ in queries:
                yield (await answered.get()).result()
        finally:
            for task in tasks:
                task.cancel()

    async def FindDuplicates(
        self, request: pb.FindDuplicatesRequest, context: Context
    ) -> AsyncIterator[pb.FindDuplicatesResponse]:
        options = duplicate_options(request)
        collection = noted(await self._store.get(request.collection))
        against = None
        if request.against not in ("", collection.name):
            against = await self._store.get(request.against)
        resume_token = options.resume_token
        async for page in self._duplicates.find(collection, against, options, deadline=_deadline(context)):
            charge_match(page.compared_count * options.neighbors, page.scored_count)
            async for response in page_to_proto(page, options, resume_token):
                yield response
            resume_token = page.resume_token

    # The server parses requests by METHOD_LIMITS.
    async def IngestDocuments(  # type: ignore[override]
        self, request_iterator: AsyncIterator[IngestRequest], context: Context
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        deadline = _deadline(context)
        async for request in request_iterator:
            documents, rejections = await ingest_request_from_proto(request)
            collection = noted(await self._store.for_write(request.collection))
            results = await self._ingest.ingest(collection, documents, deadline, request.request_id)
            yield ingest_response_to_proto([*rejections, *results])

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Context) -> pb.GetDocumentResponse:
        collection = noted(await self._store.get(request.collection))
        document = await self._documents.get(collection, request.id)
        return pb.GetDocumentResponse(document=to_proto(document))

    async def GetDocuments(
        self, request: pb.GetDocumentsRequest, context: Context
    ) -> pb.GetDocumentsResponse:
        collection = noted(await self._store.get(request.collection))
        response = await documents_by_id_to_proto(self._documents.get_many(collection, request.ids))
        charge_items(response.answered_count)
        return response

    async def ListDocuments(
        self, request: pb.ListDocumentsRequest, context: Context
    ) -> pb.ListDocumentsResponse:
        size = page_size(request.page_size)
        where = filter_from_proto(request.filter, "filter")
        collection = noted(await self._store.get(request.collection))
        fields = fields_to_read(request)
        response = await documents_page_to_proto(
            self._documents.list_after(collection, where, request.page_token, fields), size
        )
        charge_items(len(response.documents))
        return response

    async def CountDocuments(
        self, request: pb.CountDocumentsRequest, context: Context
    ) -> pb.CountDocumentsResponse:
        where = filter_from_proto(request.filter, "filter")
        collection = noted(await self._store.get(request.collection))
        charge_count()
        return pb.CountDocumentsResponse(document_count=await self._documents.count(collection, where))

    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Context
    ) -> pb.ListDeadLettersResponse:
        size = page_size(request.page_size)
        _, letters = await self._dead_letters(request)
        response = await letters_page_to_proto(
            self._documents.letters_after(letters, request.page_token), size
        )
        charge_items(len(response.dead_letters))
        return response

    async def ReplayDeadLetters(
        self, request: pb.ReplayDeadLettersRequest, context: Context
    ) -> pb.ReplayDeadLettersResponse:
        collection, letters = await self._dead_letters(request)
        replayed_count = await self._documents.replay(collection, letters, request.ids)
        charge_items(replayed_count)
        return pb.ReplayDeadLettersResponse(replayed_count=replayed_count)

    async def DropDeadLetters(
        self, request: pb.DropDeadLettersRequest, context: Context
    ) -> pb.DropDeadLettersResponse:
        _, letters = await self._dead_letters(request)
        dropped_count = await self._documents.drop(letters, request.ids)
        charge_items(dropped_count)
        return pb.DropDeadLettersResponse(dropped_count=dropped_count)

    async def DeleteDocuments(
        self, request: pb.DeleteDocumentsRequest, context: Context
    ) -> pb.DeleteDocumentsResponse:
        if bool(request.ids) == request.HasField("filter"):
            raise InvalidInput.of_field("ids", "give either ids or a filter")
        version = request.version if request.HasField("version") else None
        # Counting makes no collection.
        find = self._store.get if request.dry_run else self._store.for_write
        collection = noted(await find(request.collection))
        scope = DeleteScope(version, request.request_id, _deadline(context))
        if request.ids:
            deleted_count = await self._documents.delete(
                collection, request.ids, scope, is_dry_run=request.dry_run
            )
        else:
            where = filter_from_proto(request.filter, "filter")
            deleted_count = await self._documents.delete_where(
                collection, where, scope, is_dry_run=request.dry_run
            )
        return pb.DeleteDocumentsResponse(deleted_count=deleted_count)

    async def GetIngestStatus(
        self, request: pb.GetIngestStatusRequest, context: Context
    ) -> pb.GetIngestStatusResponse:
        if request.document_id:
            raise_violations([id_violation("document_id", request.document_id)])
            if request.document_ids:
                raise InvalidInput.of_field("document_ids", "give either one document_id or document_ids")
        collection = noted(await self._store.get(request.collection))
        ids = [request.document_id] if request.document_id else request.document_ids
        status = await self._documents.status(collection, ids)
        charge_items(len(request.document_ids))
        if request.document_id:
            [one] = status.documents
            state, error = one.state, one.error or None
            status = replace(status, documents=(), document_state=state, document_error=error)
        known = await self._problems()
        sources = {problem.source for problem in known}
        new = [problem for problem in status.problems if problem.source not in sources]
        return ingest_status_to_proto(replace(status, problems=(*known, *new)))

    async def _dead_letters(self, request: DeadLettersRequest) -> tuple[Collection, DeadLetters]:
        """The collection of a request as it is now, and the letters that the request is about."""
        collection = noted(await self._store.current(request.collection))
        return collection, self._store.unreadable if request.unreadable else collection.dead_letters

    async def _answer(
        self, collection: Collection, query: str, options: MatchOptions, deadline: float
    ) -> MatchResult | TextMatchError:
        try:
            result = await self._matcher.match(collection, query, options, deadline=deadline, is_bulk=True)
            return _charged(result, options)
        except TextMatchError as error:
            return error

    def _match_deadline(self, context: Context) -> float:
        deadline = _deadline(context)
        return time.monotonic() + self._match_timeout_seconds if deadline is None else deadline


def _charged(result: MatchResult, options: MatchOptions) -> MatchResult:
    """The result, for which the caller's key pays.

    Raises:
        AnswerIncomplete: it is degraded, and the options require a complete one.
    """
    charge_match(result.candidate_count, result.scored_count)
    if result.degraded and options.require_complete:
        raise AnswerIncomplete(result.degraded)
    return result


async def _no_problems() -> tuple[Problem, ...]:
    return ()


def _deadline(context: Context) -> float | None:
    """The caller's deadline on the monotonic clock; None if it has none."""
    remaining_seconds = context.time_remaining()
    return None if remaining_seconds is None else time.monotonic() + remaining_seconds


def noted(collection: Collection) -> Collection:
    """The collection, which the logs and the trace of the call name from now on."""
    logs.collection.set(collection.name)
    note_collection(collection.name)
    return collection


async def _checked_queries(request: pb.BatchMatchRequest) -> list[str]:
    """The queries of a batch. Other calls run in between.

    Raises:
        InvalidInput: naming every bad query by its position, or the limit on their number.
    """
    check_item_count("queries", len(request.queries), MAX_QUERIES)
    queries: list[str] = []
    violations: list[Violation | None] = []
    async for query in in_slices(request.queries):
        violations.append(text_violation(f"queries[{len(queries)}]", query))
        queries.append(query)
    raise_violations(violations)
    return queries
