"""A real gRPC server on a free port whose answers a test sets, to see what the client makes of them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Self

import pytest

from tests.support.scripted_encoder_servicer import ScriptedEncoder
from textmatch.client import TextMatchClient
from textmatch.errors import (
    CollectionNotFound,
    DocumentNotFound,
    InvalidInput,
    TextMatchError,
    Unauthenticated,
)
from textmatch.runtime.channel import MAX_MESSAGE_BYTES
from textmatch.runtime.grpc_errors import to_status
from textmatch.runtime.server import GrpcServer
from textmatch.v1 import collection_service_pb2 as collection_pb
from textmatch.v1 import collection_service_pb2_grpc as collection_grpc
from textmatch.v1 import encoder_service_pb2_grpc as encoder_grpc
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc

_EXPLANATION = pb.ScoreExplanation(
    cosine=0.75,
    lexical=0.125,
    weights=pb.ScoreWeights(intercept=-1.0, cosine=2.0, lexical=0.5, pair=0.25),
)


class ScriptedMatcher(pb_grpc.MatcherServiceServicer):
    """Stores what it is given and matches by the share of the query's words."""

    def __init__(self) -> None:
        self.documents: dict[str, pb.Document] = {}
        self.match_requests: list[pb.MatchRequest] = []
        # Of the last Match.
        self.metadata: dict[str, Any] = {}
        self.batch_sizes: list[int] = []
        self.delay_seconds = 0.0
        self.degraded: pb.DegradedReason.ValueType = pb.DEGRADED_REASON_UNSPECIFIED
        # What an operator must mend.
        self.problems: list[str] = []
        # Taken from the left: what goes wrong with the next calls, and with documents by their id.
        self.call_errors: deque[TextMatchError] = deque()
        self.document_errors: dict[str, deque[TextMatchError]] = {}
        self.query_errors: dict[str, deque[TextMatchError]] = {}
        # Taken from the left by each BatchMatch; after so many answers, the call ends with the error.
        self.batch_errors: deque[TextMatchError | None] = deque()
        self.answers_before_error = 0
        self.request_ids: list[str] = []
        self.delete_filters: list[pb.Filter] = []
        self.matching_count = 0  # of a filter, in a dry run
        self.filter_warnings: list[str] = []
        self.fail_after_batches = -1
        # At most so many items of a page, or documents by their ids, are in an answer.
        self.page_limit = 1_000
        self.list_requests: list[pb.ListDocumentsRequest] = []
        # By the number of the page.
        self.list_errors: dict[int, TextMatchError] = {}
        self.dead_letters: dict[str, pb.DeadLetter] = {}
        self.unreadable: dict[str, pb.DeadLetter] = {}
        self.replayed: list[str] = []
        # Errors of documents that fail when they are indexed, by id.
        self.failing: dict[str, str] = {}
        self.truncated_count = 0
        self.queued: deque[tuple[int, float]] = deque()
        self.duplicate_requests: list[pb.FindDuplicatesRequest] = []

    async def Match(self, request: pb.MatchRequest, context: Any) -> pb.MatchResponse:
        self._fail_if_told()
        self.match_requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        await asyncio.sleep(self.delay_seconds)
        return self._answer(request.query, request.options)

    async def BatchMatch(
        self, request: pb.BatchMatchRequest, context: Any
    ) -> AsyncIterator[pb.BatchMatchResponse]:
        error = self.batch_errors.popleft() if self.batch_errors else None
        self.batch_sizes.append(len(request.queries))
        for number, position in enumerate(reversed(range(len(request.queries)))):
            if error is not None and number == self.answers_before_error:
                raise error
            query = request.queries[position]
            if errors := self.query_errors.get(query):
                yield pb.BatchMatchResponse(query_index=position, error=to_status(errors.popleft()))
                continue
            if query == "fail":
                failure = to_status(InvalidInput.of_field("query", "was told to fail"))
                yield pb.BatchMatchResponse(query_index=position, error=failure)
                continue
            response = self._answer(query, request.options)
            yield pb.BatchMatchResponse(query_index=position, response=response)

    async def FindDuplicates(
        self, request: pb.FindDuplicatesRequest, context: Any
    ) -> AsyncIterator[pb.FindDuplicatesResponse]:
        """Pairs of neighbors in the order of their ids: `page_limit` documents a page, two pages a call."""
        self.duplicate_requests.append(pb.FindDuplicatesRequest.FromString(request.SerializeToString()))
        token = request.resume_token
        for _ in range(2):
            self._fail_if_told()
            left = sorted(one for one in self.documents if one > token)
            page, is_last = left[: self.page_limit], len(left) <= self.page_limit
            pairs = [
                pb.DuplicatePair(first=self.documents[one], second=self.documents[other], score=0.75)
                for one, other in zip(page, left[1:], strict=False)
            ]
            # In two messages.
            yield pb.FindDuplicatesResponse(pairs=pairs[:1], resume_token=token)
            token = page[-1] if page else token
            yield pb.FindDuplicatesResponse(
                pairs=pairs[1:], resume_token=token, compared_count=len(page), is_last=is_last
            )
            if is_last:
                return

    async def IngestDocuments(
        self, request_iterator: AsyncIterator[pb.IngestDocumentsRequest], context: Any
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        async for request in request_iterator:
            self.request_ids.append(request.request_id)
            self._fail_if_told()
            if len(self.batch_sizes) == self.fail_after_batches:
                raise Unauthenticated("the key has expired")
            self.batch_sizes.append(len(request.documents))
            yield pb.IngestDocumentsResponse(results=[self._take(item) for item in request.documents])

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Any) -> pb.GetDocumentResponse:
        if request.id not in self.documents:
            raise DocumentNotFound(request.id)
        return pb.GetDocumentResponse(document=self.documents[request.id])

    async def GetDocuments(self, request: pb.GetDocumentsRequest, context: Any) -> pb.GetDocumentsResponse:
        self.batch_sizes.append(len(request.ids))
        some = request.ids[: self.page_limit]
        return pb.GetDocumentsResponse(
            documents=[self.documents[one] for one in some if one in self.documents],
            missing_ids=[one for one in some if one not in self.documents],
            answered_count=len(some),
        )

    async def ListDocuments(self, request: pb.ListDocumentsRequest, context: Any) -> pb.ListDocumentsResponse:
        self._fail_if_told()
        if error := self.list_errors.pop(len(self.list_requests), None):
            raise error
        self.list_requests.append(request)
        left = sorted(one for one in self.documents if one > request.page_token)
        size = min(request.page_size or 100, self.page_limit)
        page = [pb.Document() for _ in left[:size]]
        for message, one in zip(page, left, strict=False):
            message.CopyFrom(self.documents[one])
            for name in ("text", "attributes"):
                if getattr(request, f"omit_{name}"):
                    message.ClearField(name)
        token = left[size - 1] if len(left) > size else ""
        return pb.ListDocumentsResponse(documents=page, next_page_token=token)

    async def CountDocuments(
        self, request: pb.CountDocumentsRequest, context: Any
    ) -> pb.CountDocumentsResponse:
        has_filter = bool(request.filter.ByteSize())
        return pb.CountDocumentsResponse(
            document_count=self.matching_count if has_filter else len(self.documents)
        )

    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Any
    ) -> pb.ListDeadLettersResponse:
        letters = self.unreadable if request.unreadable else self.dead_letters
        left = sorted(one for one in letters if one > request.page_token)
        size = min(request.page_size or 100, self.page_limit)
        return pb.ListDeadLettersResponse(
            dead_letters=[letters[one] for one in left[:size]],
            next_page_token=left[size - 1] if len(left) > size else "",
        )

    async def ReplayDeadLetters(
        self, request: pb.ReplayDeadLettersRequest, context: Any
    ) -> pb.ReplayDeadLettersResponse:
        taken = self._take_letters(request)
        self.replayed += taken
        return pb.ReplayDeadLettersResponse(replayed_count=len(taken))

    async def DropDeadLetters(
        self, request: pb.DropDeadLettersRequest, context: Any
    ) -> pb.DropDeadLettersResponse:
        return pb.DropDeadLettersResponse(dropped_count=len(self._take_letters(request)))

    async def DeleteDocuments(
        self, request: pb.DeleteDocumentsRequest, context: Any
    ) -> pb.DeleteDocumentsResponse:
        self.request_ids.append(request.request_id)
        self._fail_if_told()
        if request.dry_run:
            count = sum(one in self.documents for one in request.ids)
            return pb.DeleteDocumentsResponse(deleted_count=count or self.matching_count)
        self.batch_sizes.append(len(request.ids))
        self.delete_filters.append(request.filter)
        found = [document_id for document_id in request.ids if self.documents.pop(document_id, None)]
        return pb.DeleteDocumentsResponse(deleted_count=len(found))

    async def GetIngestStatus(
        self, request: pb.GetIngestStatusRequest, context: Any
    ) -> pb.GetIngestStatusResponse:
        self._fail_if_told()
        queued_count, oldest_seconds = self.queued.popleft() if self.queued else (0, 0.0)
        state = pb.DOCUMENT_STATE_UNSPECIFIED
        if request.document_id:
            indexed = request.document_id in self.documents
            state = pb.DOCUMENT_STATE_INDEXED if indexed else pb.DOCUMENT_STATE_FAILED
        return pb.GetIngestStatusResponse(
            document_count=len(self.documents),
            queued_count=queued_count,
            oldest_queued_seconds=oldest_seconds,
            dead_letter_count=1,
            truncated_count=self.truncated_count,
            collection=request.collection or "default",
            model_id="tiny-0123456789ab",
            document_state=state,
            document_error="the model failed on it" if state == pb.DOCUMENT_STATE_FAILED else "",
            documents=[
                pb.DocumentStatus(
                    id=one,
                    state=pb.DOCUMENT_STATE_INDEXED if one in self.documents else pb.DOCUMENT_STATE_FAILED,
                    version=self.documents[one].version if one in self.documents else 7,
                    error="" if one in self.documents else "the model failed on it",
                )
                for one in request.document_ids
            ],
            problems=[
                pb.Problem(source="worker", collection="default", reason="STORE_FULL", message=message)
                for message in self.problems
            ],
        )

    def _take_letters(self, request: pb.ReplayDeadLettersRequest | pb.DropDeadLettersRequest) -> list[str]:
        self.batch_sizes.append(len(request.ids))
        letters = self.unreadable if request.unreadable else self.dead_letters
        return [one for one in request.ids if letters.pop(one, None)]

    def _fail_if_told(self) -> None:
        if self.call_errors:
            raise self.call_errors.popleft()

    def _take(self, document: pb.Document) -> pb.IngestResult:
        if errors := self.document_errors.get(document.id):
            error = to_status(errors.popleft())
            return pb.IngestResult(id=document.id, outcome=pb.INGEST_OUTCOME_REJECTED, error=error)
        stored = self.documents.get(document.id)
        if stored is not None and stored.text == document.text:
            return pb.IngestResult(id=document.id, outcome=pb.INGEST_OUTCOME_UNCHANGED)
        self.documents[document.id] = document
        if error := self.failing.get(document.id):
            letter = pb.DeadLetter(id=document.id, reason="TEXT_FAILED", error=error)
            letter.fail_time.GetCurrentTime()
            self.dead_letters[document.id] = letter
        version = document.version or 1
        return pb.IngestResult(id=document.id, outcome=pb.INGEST_OUTCOME_ACCEPTED, version=version)

    def _answer(self, query: str, options: pb.MatchOptions) -> pb.MatchResponse:
        words = set(query.split())
        scored = sorted(
            ((len(words & set(item.text.split())) / len(words), item) for item in self.documents.values()),
            key=lambda pair: -pair[0],
        )
        reranked = options.rerank != pb.RERANK_MODE_NONE
        matches = [
            pb.Match(
                document=item,
                score=score,
                recall_score=score,
                rerank_score=score if reranked else None,
                explanation=_EXPLANATION if options.explain else None,
            )
            for score, item in scored[: options.top_k]
        ]
        return pb.MatchResponse(
            matches=matches,
            degraded=self.degraded,
            timings=pb.StageTimings(encode_ms=1.5, recall_ms=2.0, rerank_ms=3.0, total_ms=7.0),
            bi_encoder_model_id="tiny-0123456789ab",
            cross_encoder_model_id="pair-0123456789ab" if reranked else "",
            candidate_count=len(scored),
            scored_count=1 if reranked else 0,
            recall=options.recall or pb.RECALL_MODE_DENSE,
            filter_warnings=self.filter_warnings,
        )


class ScriptedCollections(collection_grpc.CollectionServiceServicer):
    """Keeps collections, and lists them one at a time."""

    def __init__(self) -> None:
        self.collections: dict[str, collection_pb.Collection] = {}

    async def CreateCollection(
        self, request: collection_pb.CreateCollectionRequest, context: Any
    ) -> collection_pb.CreateCollectionResponse:
        made = collection_pb.Collection(model_id="tiny-0123456789ab", document_count=3)
        made.create_time.FromSeconds(1_700_000_000)
        made.MergeFrom(request.collection)
        self.collections[made.name] = made
        return collection_pb.CreateCollectionResponse(collection=made)

    async def GetCollection(
        self, request: collection_pb.GetCollectionRequest, context: Any
    ) -> collection_pb.GetCollectionResponse:
        return collection_pb.GetCollectionResponse(collection=self._get(request.name))

    async def ListCollections(
        self, request: collection_pb.ListCollectionsRequest, context: Any
    ) -> collection_pb.ListCollectionsResponse:
        left = sorted(name for name in self.collections if name > request.page_token)
        return collection_pb.ListCollectionsResponse(
            collections=[self.collections[name] for name in left[:1]],
            next_page_token=left[0] if len(left) > 1 else "",
        )

    async def DeleteCollection(
        self, request: collection_pb.DeleteCollectionRequest, context: Any
    ) -> collection_pb.DeleteCollectionResponse:
        del self.collections[self._get(request.name).name]
        return collection_pb.DeleteCollectionResponse()

    async def AdoptCollection(
        self, request: collection_pb.AdoptCollectionRequest, context: Any
    ) -> collection_pb.AdoptCollectionResponse:
        return collection_pb.AdoptCollectionResponse(collection=self._get(request.name))

    def _get(self, name: str) -> collection_pb.Collection:
        if name not in self.collections:
            raise CollectionNotFound(name)
        return self.collections[name]


class RunningServer:
    """Serves from a separate thread: the test's thread can use a blocking client.

    Args:
        access: what GrpcServer takes to know its callers.
    """

    def __init__(
        self,
        register: Callable[[Any, Any], None],
        servicer: object,
        service_name: str,
        port: int = 0,
        **access: Any,
    ) -> None:
        self.collections = ScriptedCollections()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.address = self._run(self._start(register, servicer, service_name, port, access))

    @classmethod
    def of_matcher(cls, servicer: ScriptedMatcher, port: int = 0, **access: Any) -> Self:
        register = pb_grpc.add_MatcherServiceServicer_to_server
        return cls(register, servicer, "textmatch.v1.MatcherService", port, **access)

    @classmethod
    def of_encoder(cls, servicer: ScriptedEncoder, **access: Any) -> Self:
        register = encoder_grpc.add_EncoderServiceServicer_to_server
        return cls(register, servicer, "textmatch.v1.EncoderService", **access)

    def set_serving(self, *, is_serving: bool) -> None:
        self._run(self._server.set_serving(is_serving=is_serving))

    def stop(self) -> None:
        self._run(self._server.drain(grace_seconds=1.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(
        self,
        register: Callable[[Any, Any], None],
        servicer: object,
        service_name: str,
        port: int,
        access: dict[str, Any],
    ) -> str:
        self._server = GrpcServer("127.0.0.1", port, MAX_MESSAGE_BYTES, **access)
        self._server.add(register, servicer, service_name)
        add = collection_grpc.add_CollectionServiceServicer_to_server
        self._server.add(add, self.collections, "textmatch.v1.CollectionService")
        address = await self._server.start()
        await self._server.set_serving(is_serving=True)
        return address

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)


@pytest.fixture
def matcher() -> ScriptedMatcher:
    return ScriptedMatcher()


@pytest.fixture
def encoder() -> ScriptedEncoder:
    return ScriptedEncoder()


@pytest.fixture
def matcher_server(matcher: ScriptedMatcher) -> Iterator[RunningServer]:
    server = RunningServer.of_matcher(matcher)
    yield server
    server.stop()


@pytest.fixture
def encoder_server(encoder: ScriptedEncoder) -> Iterator[RunningServer]:
    server = RunningServer.of_encoder(encoder)
    yield server
    server.stop()


@pytest.fixture
def client(matcher_server: RunningServer, encoder_server: RunningServer) -> Iterator[TextMatchClient]:
    with TextMatchClient(matcher_server.address, encoder_server.address) as client:
        yield client
