"""Calls to one server, blocking or by asyncio. Each has a deadline, and fails with a TextMatchError.

The client is written once, as coroutines over a `Connection`. A `BlockingConnection` answers them without an
event loop: its coroutines block instead of waiting, so `run` gets a result from a single step.
"""

from __future__ import annotations

import asyncio
import copy
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from textmatch.errors import DeadlinePassed, DependencyUnavailable, InvalidInput, TextMatchError, Violation
from textmatch.runtime.channel import BlockingReloadingChannel, ReloadingChannel, call_metadata
from textmatch.runtime.grpc_errors import DETAILS_METADATA_KEY, from_rpc_error
from textmatch.runtime.tls import ClientTls
from textmatch.v1 import collection_service_pb2 as collection_pb
from textmatch.v1 import collection_service_pb2_grpc as collection_grpc
from textmatch.v1 import encoder_service_pb2 as encoder_pb
from textmatch.v1 import encoder_service_pb2_grpc as encoder_grpc
from textmatch.v1 import matcher_service_pb2 as matcher_pb
from textmatch.v1 import matcher_service_pb2_grpc as matcher_grpc

Item = TypeVar("Item")
Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")

# Size limit of one call. gRPC accepts larger messages, but progress would be coarse.
MAX_CHUNK_BYTES = 4 * 1024 * 1024
# Two calls at a time keep the server busy while an answer travels.
_CALLS_IN_FLIGHT = 2
_POSITION = re.compile(r"(texts|pairs)\[(\d+)\]")


@dataclass(frozen=True)
class Method(Generic[Request, Response]):
    """A method of a server, with the types of its messages. Every call sends a single request."""

    name: str
    takes_stream: bool = False
    gives_stream: bool = False


MATCH: Method[matcher_pb.MatchRequest, matcher_pb.MatchResponse] = Method("Match")
BATCH_MATCH: Method[matcher_pb.BatchMatchRequest, matcher_pb.BatchMatchResponse] = Method(
    "BatchMatch", gives_stream=True
)
FIND_DUPLICATES: Method[matcher_pb.FindDuplicatesRequest, matcher_pb.FindDuplicatesResponse] = Method(
    "FindDuplicates", gives_stream=True
)
INGEST_DOCUMENTS: Method[matcher_pb.IngestDocumentsRequest, matcher_pb.IngestDocumentsResponse] = Method(
    "IngestDocuments", takes_stream=True, gives_stream=True
)
GET_DOCUMENT: Method[matcher_pb.GetDocumentRequest, matcher_pb.GetDocumentResponse] = Method("GetDocument")
DELETE_DOCUMENTS: Method[matcher_pb.DeleteDocumentsRequest, matcher_pb.DeleteDocumentsResponse] = Method(
    "DeleteDocuments"
)
GET_INGEST_STATUS: Method[matcher_pb.GetIngestStatusRequest, matcher_pb.GetIngestStatusResponse] = Method(
    "GetIngestStatus"
)
GET_DOCUMENTS: Method[matcher_pb.GetDocumentsRequest, matcher_pb.GetDocumentsResponse] = Method(
    "GetDocuments"
)
LIST_DOCUMENTS: Method[matcher_pb.ListDocumentsRequest, matcher_pb.ListDocumentsResponse] = Method(
    "ListDocuments"
)
COUNT_DOCUMENTS: Method[matcher_pb.CountDocumentsRequest, matcher_pb.CountDocumentsResponse] = Method(
    "CountDocuments"
)
LIST_DEAD_LETTERS: Method[matcher_pb.ListDeadLettersRequest, matcher_pb.ListDeadLettersResponse] = Method(
    "ListDeadLetters"
)
REPLAY_DEAD_LETTERS: Method[matcher_pb.ReplayDeadLettersRequest, matcher_pb.ReplayDeadLettersResponse] = (
    Method("ReplayDeadLetters")
)
DROP_DEAD_LETTERS: Method[matcher_pb.DropDeadLettersRequest, matcher_pb.DropDeadLettersResponse] = Method(
    "DropDeadLetters"
)
ENCODE: Method[encoder_pb.EncodeRequest, encoder_pb.EncodeResponse] = Method("Encode")
SCORE: Method[encoder_pb.ScoreRequest, encoder_pb.ScoreResponse] = Method("Score")
GET_MODELS: Method[encoder_pb.GetModelsRequest, encoder_pb.GetModelsResponse] = Method("GetModels")
CREATE_COLLECTION: Method[collection_pb.CreateCollectionRequest, collection_pb.CreateCollectionResponse] = (
    Method("CreateCollection")
)
GET_COLLECTION: Method[collection_pb.GetCollectionRequest, collection_pb.GetCollectionResponse] = Method(
    "GetCollection"
)
LIST_COLLECTIONS: Method[collection_pb.ListCollectionsRequest, collection_pb.ListCollectionsResponse] = (
    Method("ListCollections")
)
DELETE_COLLECTION: Method[collection_pb.DeleteCollectionRequest, collection_pb.DeleteCollectionResponse] = (
    Method("DeleteCollection")
)
ADOPT_COLLECTION: Method[collection_pb.AdoptCollectionRequest, collection_pb.AdoptCollectionResponse] = (
    Method("AdoptCollection")
)
CHECK_HEALTH: Method[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse] = Method("Check")

_STUBS: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "matcher": (matcher_grpc.MatcherServiceStub, collection_grpc.CollectionServiceStub),
    "encoder": (encoder_grpc.EncoderServiceStub,),
}


class ServerUnreachable(DependencyUnavailable):
    """No gRPC server answers at the address."""

    def __init__(self, server: str, address: str) -> None:
        super().__init__(f"the {server} at {address} does not answer")
        self.server = server
        self.address = address


class StartedCall(ABC, Generic[Response]):
    """A call that runs.

    Args:
        call: as gRPC's stub returned it.
        translated_errors: turns gRPC's errors into TextMatchErrors.
    """

    def __init__(self, call: Any, translated_errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._call = call
        self._translated_errors = translated_errors

    def cancel(self) -> None:
        """End the call, if it still runs."""
        self._call.cancel()

    @abstractmethod
    async def response(self) -> Response:
        """The only response."""

    @abstractmethod
    def responses(self) -> AsyncIterator[Response]:
        """The responses of a method that gives a stream."""


class _BlockingCall(StartedCall[Response]):
    async def response(self) -> Response:
        with self._translated_errors():
            response: Response = self._call.result()
        return response

    async def responses(self) -> AsyncIterator[Response]:
        with self._translated_errors():
            for response in self._call:
                yield response


class _AioCall(StartedCall[Response]):
    async def response(self) -> Response:
        with self._translated_errors():
            response: Response = await self._call
        return response

    async def responses(self) -> AsyncIterator[Response]:
        with self._translated_errors():
            async for response in self._call:
                yield response


class Connection(ABC):
    """One server at one address. Connects with the first call, and again after the connection is lost.

    Args:
        name: "matcher" or "encoder".
        tls: its files may be replaced: the next call opens a connection with the new content.

    Raises:
        InvalidInput: a file of `tls` cannot be read.
    """

    _started_call: ClassVar[type[StartedCall[Any]]]

    def __init__(self, name: str, address: str, api_key: str = "", tls: ClientTls | None = None) -> None:
        self.name = name
        self.address = address
        self._metadata = call_metadata(api_key)
        self._answered = threading.Event()
        self._channel = self._open(tls, self._make_stub)

    def of_caller(self, api_key: str, request_id: str) -> Self:
        """The same connection, with the key of another caller and an id for the server's logs."""
        other = copy.copy(self)
        vars(other).update(_metadata=call_metadata(api_key, request_id))
        return other

    @property
    def has_answered(self) -> bool:
        """Whether the server has ever answered; if not, its address may be wrong."""
        return self._answered.is_set()

    def note_answer(self) -> None:
        """The server has answered."""
        self._answered.set()

    def may_recover(self, error: BaseException) -> bool:
        """Whether another try of a failed call may succeed: at a wrong address, none does."""
        never_answered = isinstance(error, ServerUnreachable) and not self.has_answered
        return isinstance(error, TextMatchError) and error.is_transient and not never_answered

    async def call(
        self, method: Method[Request, Response], request: Request, timeout_seconds: float
    ) -> Response:
        """Call and wait.

        Raises:
            TextMatchError: the call failed.
        """
        with self._translated_errors(timeout_seconds):
            response: Response = await self._wait(
                self._stub_of(method), request, self._options(timeout_seconds)
            )
        self.note_answer()
        return response

    def start(
        self, method: Method[Request, Response], request: Request, timeout_seconds: float
    ) -> StartedCall[Response]:
        """Start a call. Several may run at the same time."""
        sent = iter((request,)) if method.takes_stream else request
        call = self._begin(method)(sent, **self._options(timeout_seconds))
        return self._started_call(call, lambda: self._translated_errors(timeout_seconds))

    async def call_each(
        self,
        method: Method[Request, Response],
        requests: Iterable[tuple[int, Request]],
        timeout_seconds: float,
    ) -> AsyncGenerator[Response, None]:
        """Call with each request, a few at a time. Responses come in the order of the requests.

        Args:
            requests: each with the position of its first item in the whole input, for errors.

        Raises:
            TextMatchError: a call failed; the others are cancelled.
        """
        running: deque[tuple[int, StartedCall[Response]]] = deque()
        try:
            for start, request in requests:
                running.append((start, self.start(method, request, timeout_seconds)))
                if len(running) == _CALLS_IN_FLIGHT:
                    yield await _response_of(*running.popleft())
            while running:
                yield await _response_of(*running.popleft())
        finally:
            for _, call in running:
                call.cancel()

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connection; running calls are cancelled."""

    @abstractmethod
    def _open(
        self, tls: ClientTls | None, make_stub: Callable[[Any], dict[str, Any]]
    ) -> BlockingReloadingChannel[dict[str, Any]] | ReloadingChannel[dict[str, Any]]:
        """The channel."""

    @abstractmethod
    async def _wait(self, stub: Callable[..., Any], request: Any, options: dict[str, Any]) -> Any:
        """The response to a request."""

    def _begin(self, method: Method[Any, Any]) -> Any:
        """What starts a call of the method without waiting."""
        return self._stub_of(method)

    def _make_stub(self, channel: Any) -> dict[str, Any]:
        """All methods by name, with the `Check` of the health service."""
        stubs = (*_STUBS[self.name], health_pb2_grpc.HealthStub)
        return {name: method for stub in stubs for name, method in vars(stub(channel)).items()}

    def _stub_of(self, method: Method[Any, Any]) -> Any:
        return self._channel.stub[method.name]

    def _options(self, timeout_seconds: float) -> dict[str, Any]:
        return {"timeout": timeout_seconds, "metadata": self._metadata}

    @contextmanager
    def _translated_errors(self, timeout_seconds: float) -> Iterator[None]:
        """Turn gRPC's errors into TextMatchErrors. An error that the server did not send names the server."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._translated(error, timeout_seconds) from error
        except grpc.FutureCancelledError:
            raise self._closed() from None

    def _closed(self) -> DependencyUnavailable:
        return DependencyUnavailable(f"the call was cancelled: the connection to the {self.name} was closed")

    def _translated(self, error: Any, timeout_seconds: float) -> TextMatchError:
        if DETAILS_METADATA_KEY not in dict(error.trailing_metadata() or ()):
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return ServerUnreachable(self.name, self.address)
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlinePassed(
                    f"the {self.name} at {self.address} did not answer within {timeout_seconds:g} seconds"
                )
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return DependencyUnavailable(f"the server at {self.address} is not a textmatch {self.name}")
        return from_rpc_error(error)


class BlockingConnection(Connection):
    """Blocks the calling thread. Threads may share it."""

    _started_call = _BlockingCall
    _channel: BlockingReloadingChannel[dict[str, Any]]

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 -- there is no event loop

    async def close(self) -> None:
        self._channel.close()

    def _open(
        self, tls: ClientTls | None, make_stub: Callable[[Any], dict[str, Any]]
    ) -> BlockingReloadingChannel[dict[str, Any]]:
        return BlockingReloadingChannel(self.address, tls, make_stub)

    async def _wait(self, stub: Callable[..., Any], request: Any, options: dict[str, Any]) -> Any:
        return stub(request, **options)

    def _begin(self, method: Method[Any, Any]) -> Any:
        stub = self._stub_of(method)
        return stub if method.gives_stream else stub.future


class AioConnection(Connection):
    """Waits in the event loop of its first call."""

    _started_call = _AioCall
    _channel: ReloadingChannel[dict[str, Any]]

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        await self._channel.close()

    def _open(
        self, tls: ClientTls | None, make_stub: Callable[[Any], dict[str, Any]]
    ) -> ReloadingChannel[dict[str, Any]]:
        return ReloadingChannel(self.address, tls, make_stub)

    async def _wait(self, stub: Callable[..., Any], request: Any, options: dict[str, Any]) -> Any:
        return await stub(request, **options)

    @contextmanager
    def _translated_errors(self, timeout_seconds: float) -> Iterator[None]:
        try:
            with super()._translated_errors(timeout_seconds):
                yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # gRPC cancels the waiting task when the channel is closed.
            raise self._closed() from None


def run(steps: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine over blocking connections.

    Raises:
        RuntimeError: the coroutine waits for an event loop: the caller's input is asynchronous.
    """
    try:
        steps.send(None)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    steps.close()
    raise RuntimeError("TextMatchClient cannot wait for asyncio; use AsyncTextMatchClient")


def chunks(
    items: Sequence[Item], size_bytes: Callable[[Item], int], max_items: int
) -> Iterator[tuple[int, list[Item]]]:
    """Cut a sequence into (position of the first item, items).

    A chunk has at most `max_items` items and `MAX_CHUNK_BYTES`, unless a single item is larger.
    """
    start, chunk, chunk_bytes = 0, list[Item](), 0
    for position, item in enumerate(items):
        item_bytes = size_bytes(item)
        if chunk and (len(chunk) == max_items or chunk_bytes + item_bytes > MAX_CHUNK_BYTES):
            yield start, chunk
            start, chunk, chunk_bytes = position, [], 0
        chunk.append(item)
        chunk_bytes += item_bytes
    if chunk:
        yield start, chunk


def utf8_bytes(text: str) -> int:
    """The size of a text on the wire."""
    return len(text.encode())


async def _response_of(start: int, call: StartedCall[Response]) -> Response:
    """The response, or its error with the positions of items in the whole input."""
    try:
        return await call.response()
    except InvalidInput as error:
        raise InvalidInput([_moved(violation, start) for violation in error.violations]) from error


def _moved(violation: Violation, start: int) -> Violation:
    field = _POSITION.sub(lambda found: f"{found[1]}[{int(found[2]) + start}]", violation.field)
    return replace(violation, field=field)
