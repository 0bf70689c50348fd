"""The client of the matcher and the encoder for asyncio. No protobuf in its arguments and results.

It is also the implementation of the synchronous client, which runs its methods over blocking connections.
"""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterable, Callable, Iterable
from typing import ClassVar, Self, Unpack

from grpc_health.v1 import health_pb2
from tenacity import AsyncRetrying, retry_if_result, wait_exponential

from textmatch.client import arguments
from textmatch.client.arguments import to_seconds, with_checked_options
from textmatch.client.batches import DocumentStream, QueryStream, WatchedQueue, in_order, new_request_id
from textmatch.client.connection import (
    ADOPT_COLLECTION,
    CHECK_HEALTH,
    COUNT_DOCUMENTS,
    CREATE_COLLECTION,
    DELETE_COLLECTION,
    DELETE_DOCUMENTS,
    GET_COLLECTION,
    GET_DOCUMENT,
    GET_INGEST_STATUS,
    LIST_COLLECTIONS,
    MATCH,
    AioConnection,
    Connection,
    chunks,
    utf8_bytes,
)
from textmatch.client.duplicates import DuplicateStream, to_request
from textmatch.client.encoder_calls import EncoderCalls
from textmatch.client.encoder_methods import AsyncEncoderMethods
from textmatch.client.listing import (
    IDS_PER_CALL,
    LetterCalls,
    documents_by_id,
    listed_documents,
    states_by_id,
)
from textmatch.client.results import AsyncResults
from textmatch.client.settings import ClientSettings
from textmatch.collection_config import DEFAULT_COLLECTION, CollectionConfig
from textmatch.documents import Document
from textmatch.errors import InvalidInput, TextMatchError
from textmatch.filters import Condition
from textmatch.runtime.settings import load
from textmatch.runtime.tls import ClientTls
from textmatch.types import (
    BatchMatchResult,
    CollectionSummary,
    DocumentResult,
    DocumentStatus,
    DuplicateOptions,
    DuplicatePage,
    FoundDocuments,
    HealthState,
    IngestOutcome,
    IngestStatus,
    IngestSummary,
    LetterInfo,
    MatchKeywords,
    MatchResult,
    ServerHealth,
)
from textmatch.v1 import collection_service_pb2 as collection_pb
from textmatch.v1 import matcher_service_pb2 as matcher_pb
from textmatch.wire.collections import settings_to_proto, summary_from_proto
from textmatch.wire.documents import DocumentLike, from_proto, ingest_status_from_proto
from textmatch.wire.matching import result_from_proto

DEFAULT_MATCHER = "127.0.0.1:50052"
DEFAULT_ENCODER = "127.0.0.1:50051"
_MAX_REJECTIONS = 100
# The client gives up after this time in which the matcher answers no item, or the queue does not shrink.
_STALL_TIMEOUT_SECONDS = 120.0
_FIRST_POLL_SECONDS = 0.05
_LAST_POLL_SECONDS = 1.0
_HEALTH_TIMEOUT_SECONDS = 2.0


@with_checked_options
class AsyncTextMatchClient(AsyncEncoderMethods):
    """Talks to a matcher and an encoder by asyncio.

        async with AsyncTextMatchClient() as client:
            await client.ingest_all([{"id": "rm", "text": "delete a folder and everything in it"}], wait=True)
            for match in await client.match("remove a directory tree", top_k=3):
                print(match.score, match.document.id, match.document.text)

    Methods, arguments and errors are those of `TextMatchClient`, which documents them. A client belongs to
    the event loop of its first call. `ingest` and `batch_match` also take asynchronous iterables.
    """

    _connection: ClassVar[type[Connection]] = AioConnection

    def __init__(
        self,
        matcher: str = DEFAULT_MATCHER,
        encoder: str = DEFAULT_ENCODER,
        *,
        timeout_seconds: float = 10.0,
        bulk_timeout_seconds: float = 300.0,
        api_key: str | None = None,
        tls: ClientTls | None = None,
        collection: str = DEFAULT_COLLECTION,
    ) -> None:
        if tls is not None and not isinstance(tls, ClientTls):
            raise InvalidInput.of_field("tls", f"is a {type(tls).__name__}; it must be a ClientTls")
        self._timeout_seconds = to_seconds(timeout_seconds, 10.0)
        self._bulk_timeout_seconds = to_seconds(bulk_timeout_seconds, 300.0, "bulk_timeout_seconds")
        key = load(ClientSettings).api_key if api_key is None else arguments.to_name("api_key", api_key)
        self._api_key = key
        self._request_id = ""
        self._matcher = self._connection("matcher", arguments.to_name("matcher", matcher), key, tls)
        encoder_connection = self._connection("encoder", arguments.to_name("encoder", encoder), key, tls)
        self._encoder = EncoderCalls(encoder_connection)
        self._collection = arguments.to_name("collection", collection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def using(
        self, *, collection: str | None = None, api_key: str | None = None, request_id: str | None = None
    ) -> Self:
        """As `TextMatchClient.using`."""
        given = {"collection": collection, "api_key": api_key, "request_id": request_id}
        changed = {
            f"_{name}": arguments.to_name(name, value) for name, value in given.items() if value is not None
        }
        other = copy.copy(self)
        vars(other).update(changed)
        if api_key is not None or request_id is not None:
            other._call_as_caller()  # noqa: SLF001 -- of this class
        return other

    async def close(self) -> None:
        """Close the connections; running calls are cancelled."""
        await self._matcher.close()
        await self._encoder.connection.close()

    async def match(
        self,
        query: str = "",
        *,
        document_id: str = "",
        timeout_seconds: float | None = None,
        **options: Unpack[MatchKeywords],
    ) -> MatchResult:
        """As `TextMatchClient.match`."""
        text, stored_id = arguments.to_query(query, document_id)
        request = matcher_pb.MatchRequest(
            query=text,
            document_id=stored_id,
            options=arguments.to_match_options(options),
            collection=self._collection,
        )
        response = await self._matcher.call(MATCH, request, self._interactive(timeout_seconds))
        return result_from_proto(text or stored_id, response)

    def batch_match(
        self,
        queries: Iterable[str] | AsyncIterable[str],
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[MatchKeywords],
    ) -> AsyncResults[BatchMatchResult]:
        """As `TextMatchClient.batch_match`; to be read by `async for`."""
        stream = QueryStream(
            self._matcher,
            arguments.to_match_options(options),
            self._collection,
            timeout_seconds=self._bulk(timeout_seconds),
            stall_timeout_seconds=_STALL_TIMEOUT_SECONDS,
        )
        texts = arguments.to_iterable("queries", queries)
        return AsyncResults(in_order(stream.run(texts)), "batch_match")

    def find_duplicates(
        self,
        *,
        against: str = "",
        min_score: float = DuplicateOptions.min_score,
        neighbors: int = DuplicateOptions.neighbors,
        where: Condition | str | None = None,
        rerank: bool = True,
        omit_text: bool = False,
        resume_token: str = "",
        timeout_seconds: float | None = None,
    ) -> AsyncResults[DuplicatePage]:
        """As `TextMatchClient.find_duplicates`; to be read by `async for`."""
        given = {
            "min_score": min_score,
            "neighbors": neighbors,
            "where": where,
            "rerank": rerank,
            "omit_text": omit_text,
            "resume_token": resume_token,
        }
        stream = DuplicateStream(
            self._matcher,
            to_request(given, collection=self._collection, against=against),
            timeout_seconds=self._bulk(timeout_seconds),
            stall_timeout_seconds=_STALL_TIMEOUT_SECONDS,
        )
        return AsyncResults(stream.run(), "find_duplicates")

    def ingest(
        self,
        documents: Iterable[DocumentLike] | AsyncIterable[DocumentLike],
        *,
        timeout_seconds: float | None = None,
    ) -> AsyncResults[DocumentResult]:
        """As `TextMatchClient.ingest`; to be read by `async for`."""
        stream = DocumentStream(
            self._matcher,
            self._collection,
            timeout_seconds=self._bulk(timeout_seconds),
            stall_timeout_seconds=_STALL_TIMEOUT_SECONDS,
        )
        return AsyncResults(stream.run(arguments.to_iterable("documents", documents)), "ingest")

    async def ingest_all(
        self,
        documents: Iterable[DocumentLike] | AsyncIterable[DocumentLike],
        *,
        wait: bool = False,
        timeout_seconds: float | None = None,
    ) -> IngestSummary:
        """As `TextMatchClient.ingest_all`."""
        is_waiting = arguments.to_flag("wait", wait)
        counts = dict.fromkeys(IngestOutcome, 0)
        rejections: list[DocumentResult] = []
        async for result in self.ingest(documents, timeout_seconds=timeout_seconds):
            counts[result.outcome] += 1
            if result.outcome is IngestOutcome.REJECTED and len(rejections) < _MAX_REJECTIONS:
                rejections.append(result)
        if is_waiting:
            await self.wait_until_searchable()
        return IngestSummary(
            accepted=counts[IngestOutcome.ACCEPTED],
            unchanged=counts[IngestOutcome.UNCHANGED],
            rejected=counts[IngestOutcome.REJECTED],
            rejections=tuple(rejections),
        )

    async def wait_until_searchable(
        self,
        on_status: Callable[[IngestStatus], None] | None = None,
        *,
        on_problem: Callable[[str], None] | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        """As `TextMatchClient.wait_until_searchable`."""
        for name, function in (("on_status", on_status), ("on_problem", on_problem)):
            if function is not None and not callable(function):
                raise InvalidInput.of_field(name, "is not a function")
        limit_seconds = to_seconds(timeout_seconds, float("inf"))
        queue = WatchedQueue(
            limit_seconds, on_problem or (lambda message: None), stall_timeout_seconds=_STALL_TIMEOUT_SECONDS
        )

        async def are_waiting() -> bool:
            asked = time.monotonic()
            try:
                status = await self.ingest_status(timeout_seconds=min(limit_seconds, self._timeout_seconds))
            except TextMatchError as error:
                queue.failed(error, asked)
                return True
            if on_status is not None:
                on_status(status)
            return queue.is_waiting(status, asked)

        wait = wait_exponential(_FIRST_POLL_SECONDS, max=_LAST_POLL_SECONDS)
        await AsyncRetrying(sleep=self._matcher.sleep, retry=retry_if_result(bool), wait=wait)(are_waiting)

    async def get_document(self, document_id: str, *, timeout_seconds: float | None = None) -> Document:
        """As `TextMatchClient.get_document`."""
        request = matcher_pb.GetDocumentRequest(
            id=arguments.to_id("document_id", document_id), collection=self._collection
        )
        response = await self._matcher.call(GET_DOCUMENT, request, self._interactive(timeout_seconds))
        return from_proto(response.document)

    async def get_documents(
        self, ids: str | Iterable[str], *, timeout_seconds: float | None = None
    ) -> FoundDocuments:
        """As `TextMatchClient.get_documents`."""
        checked = arguments.to_ids("ids", ids)
        return await documents_by_id(self._matcher, checked, self._collection, self._bulk(timeout_seconds))

    def list_documents(
        self,
        where: Condition | str | None = None,
        *,
        after: str = "",
        limit: int | None = None,
        omit_text: bool = False,
        omit_attributes: bool = False,
        timeout_seconds: float | None = None,
    ) -> AsyncResults[Document]:
        """As `TextMatchClient.list_documents`; to be read by `async for`."""
        request = matcher_pb.ListDocumentsRequest(
            filter=arguments.to_filter(where),
            collection=self._collection,
            page_token=arguments.to_name("after", after) and arguments.to_id("after", after),
            omit_text=arguments.to_flag("omit_text", omit_text),
            omit_attributes=arguments.to_flag("omit_attributes", omit_attributes),
        )
        most, seconds = arguments.to_limit(limit), self._bulk(timeout_seconds)
        return AsyncResults(listed_documents(self._matcher, request, most, seconds), "list_documents")

    async def count_documents(
        self, where: Condition | str | None = None, *, timeout_seconds: float | None = None
    ) -> int:
        """As `TextMatchClient.count_documents`."""
        request = matcher_pb.CountDocumentsRequest(
            filter=arguments.to_filter(where), collection=self._collection
        )
        response = await self._matcher.call(COUNT_DOCUMENTS, request, self._bulk(timeout_seconds))
        return response.document_count

    async def delete(
        self,
        ids: str | Iterable[str],
        *,
        version: int | None = None,
        dry_run: bool = False,
        timeout_seconds: float | None = None,
    ) -> int:
        """As `TextMatchClient.delete`."""
        checked, cut = arguments.to_ids("ids", ids), arguments.to_version(version)
        only_count = arguments.to_flag("dry_run", dry_run)
        deleted_count = 0
        for _, chunk in chunks(checked, utf8_bytes, IDS_PER_CALL):
            request = matcher_pb.DeleteDocumentsRequest(
                ids=chunk, version=cut, dry_run=only_count, collection=self._collection
            )
            deleted_count += await self._delete(request, timeout_seconds)
        return deleted_count

    async def delete_where(
        self,
        where: Condition | str,
        *,
        version: int | None = None,
        dry_run: bool = False,
        timeout_seconds: float | None = None,
    ) -> int:
        """As `TextMatchClient.delete_where`."""
        request = matcher_pb.DeleteDocumentsRequest(
            filter=arguments.to_delete_filter(where),
            version=arguments.to_version(version),
            dry_run=arguments.to_flag("dry_run", dry_run),
            collection=self._collection,
        )
        return await self._delete(request, timeout_seconds)

    async def ingest_status(
        self, document_id: str = "", *, collection: str = "", timeout_seconds: float | None = None
    ) -> IngestStatus:
        """As `TextMatchClient.ingest_status`."""
        one = arguments.to_name("document_id", document_id) and arguments.to_id("document_id", document_id)
        name = arguments.to_name("collection", collection) or self._collection
        request = matcher_pb.GetIngestStatusRequest(document_id=one, collection=name)
        response = await self._matcher.call(GET_INGEST_STATUS, request, self._interactive(timeout_seconds))
        return ingest_status_from_proto(response)

    async def document_states(
        self, ids: str | Iterable[str], *, timeout_seconds: float | None = None
    ) -> tuple[DocumentStatus, ...]:
        """As `TextMatchClient.document_states`."""
        checked = arguments.to_ids("ids", ids)
        return await states_by_id(self._matcher, checked, self._collection, self._bulk(timeout_seconds))

    def list_dead_letters(
        self,
        *,
        limit: int | None = None,
        unreadable: bool = False,
        timeout_seconds: float | None = None,
    ) -> AsyncResults[LetterInfo]:
        """As `TextMatchClient.list_dead_letters`; to be read by `async for`."""
        calls = self._letters(unreadable, timeout_seconds)
        return AsyncResults(calls.listed(arguments.to_limit(limit)), "list_dead_letters")

    async def replay_dead_letters(
        self, ids: str | Iterable[str], *, unreadable: bool = False, timeout_seconds: float | None = None
    ) -> int:
        """As `TextMatchClient.replay_dead_letters`."""
        return await self._letters(unreadable, timeout_seconds).replay(arguments.to_ids("ids", ids))

    async def drop_dead_letters(
        self, ids: str | Iterable[str], *, unreadable: bool = False, timeout_seconds: float | None = None
    ) -> int:
        """As `TextMatchClient.drop_dead_letters`."""
        return await self._letters(unreadable, timeout_seconds).drop(arguments.to_ids("ids", ids))

    async def create_collection(
        self, settings: CollectionConfig, *, timeout_seconds: float | None = None
    ) -> CollectionSummary:
        """As `TextMatchClient.create_collection`."""
        if not isinstance(settings, CollectionConfig):
            raise InvalidInput.of_field(
                "settings", f"is a {type(settings).__name__}; it must be a CollectionConfig"
            )
        settings.check()
        request = collection_pb.CreateCollectionRequest(collection=settings_to_proto(settings))
        response = await self._matcher.call(CREATE_COLLECTION, request, self._bulk(timeout_seconds))
        return summary_from_proto(response.collection)

    async def get_collection(self, name: str, *, timeout_seconds: float | None = None) -> CollectionSummary:
        """As `TextMatchClient.get_collection`."""
        request = collection_pb.GetCollectionRequest(name=arguments.to_name("name", name))
        response = await self._matcher.call(GET_COLLECTION, request, self._interactive(timeout_seconds))
        return summary_from_proto(response.collection)

    async def list_collections(self, *, timeout_seconds: float | None = None) -> list[CollectionSummary]:
        """As `TextMatchClient.list_collections`."""
        summaries: list[CollectionSummary] = []
        page_token = ""
        while True:
            request = collection_pb.ListCollectionsRequest(page_token=page_token)
            response = await self._matcher.call(LIST_COLLECTIONS, request, self._bulk(timeout_seconds))
            summaries += map(summary_from_proto, response.collections)
            page_token = response.next_page_token
            if not page_token:
                return summaries

    async def delete_collection(self, name: str, *, timeout_seconds: float | None = None) -> None:
        """As `TextMatchClient.delete_collection`."""
        request = collection_pb.DeleteCollectionRequest(name=arguments.to_name("name", name))
        await self._matcher.call(DELETE_COLLECTION, request, self._bulk(timeout_seconds))

    async def adopt_collection(self, name: str, *, timeout_seconds: float | None = None) -> CollectionSummary:
        """As `TextMatchClient.adopt_collection`."""
        request = collection_pb.AdoptCollectionRequest(name=arguments.to_name("name", name))
        response = await self._matcher.call(ADOPT_COLLECTION, request, self._bulk(timeout_seconds))
        return summary_from_proto(response.collection)

    async def health(self, *, timeout_seconds: float | None = None) -> tuple[ServerHealth, ...]:
        """As `TextMatchClient.health`."""
        seconds = to_seconds(timeout_seconds, _HEALTH_TIMEOUT_SECONDS)
        return await _health(self._encoder.connection, seconds), await _health(self._matcher, seconds)

    def _call_as_caller(self) -> None:
        self._matcher = self._matcher.of_caller(self._api_key, self._request_id)
        self._encoder = self._encoder.of_caller(self._api_key, self._request_id)

    def _letters(self, unreadable: bool, timeout_seconds: float | None) -> LetterCalls:
        is_unreadable = arguments.to_flag("unreadable", unreadable)
        return LetterCalls(self._matcher, self._collection, is_unreadable, self._bulk(timeout_seconds))

    async def _delete(self, request: matcher_pb.DeleteDocumentsRequest, timeout_seconds: float | None) -> int:
        request.request_id = new_request_id()
        response = await self._matcher.call(DELETE_DOCUMENTS, request, self._bulk(timeout_seconds))
        return response.deleted_count


async def _health(server: Connection, timeout_seconds: float) -> ServerHealth:
    try:
        response = await server.call(CHECK_HEALTH, health_pb2.HealthCheckRequest(), timeout_seconds)
    except TextMatchError:
        return ServerHealth(server.name, server.address, HealthState.UNREACHABLE)
    is_serving = response.status == health_pb2.HealthCheckResponse.SERVING
    state = HealthState.SERVING if is_serving else HealthState.NOT_SERVING
    return ServerHealth(server.name, server.address, state)
