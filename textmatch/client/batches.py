"""Sends many items in batches, and sends again what was refused for now or not answered.

Each batch is a call of its own, with its own deadline, and may go to any replica. Only a few batches are in
memory. Documents and queries differ in their messages, and in that documents with the same id are sent one
after the other. Then they wait in the server's queue, which can be watched.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from textmatch.client.arguments import to_text
from textmatch.client.connection import (
    BATCH_MATCH,
    INGEST_DOCUMENTS,
    MAX_CHUNK_BYTES,
    Connection,
    Method,
    StartedCall,
    utf8_bytes,
)
from textmatch.documents import Document
from textmatch.errors import DeadlinePassed, DependencyUnavailable, InvalidInput, TextMatchError
from textmatch.retry import RetryPolicy
from textmatch.types import BatchMatchResult, DocumentResult, IngestStatus
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import ingest_results_from_proto, rejection, to_document, to_proto
from textmatch.wire.matching import batch_result_from_proto

Item = TypeVar("Item")
Result = TypeVar("Result", BatchMatchResult, DocumentResult)
Values: TypeAlias = Iterable[Any] | AsyncIterable[Any]

_MAX_BACKOFF_SECONDS = 1.0
# A queue that stands still for so many stall timeouts is not waited for.
_MAX_STALLS = 8


def new_request_id() -> str:
    """The id of a request, the same for all its tries."""
    return str(uuid.uuid4())


@dataclass
class Batch(Generic[Item, Result]):
    """Items that are not answered yet, by their position in the input.

    Attributes:
        call: None before the items are sent.
        sent: positions of the items of the call, in the order of its request.
        refused: answers of the last try that may be different in the next one, by position.
        lost: why the last try ended before all items were answered.
    """

    items: dict[int, Item] = field(default_factory=dict)
    size_bytes: int = 0
    request_id: str = field(default_factory=new_request_id)
    call: StartedCall[Any] | None = None
    sent: list[int] = field(default_factory=list)
    refused: dict[int, Result] = field(default_factory=dict)
    lost: TextMatchError | None = None

    def has_room_for(self, size_bytes: int, max_items: int) -> bool:
        """Whether the batch stays within the limits with this item. A single item may be larger."""
        fits = len(self.items) < max_items and self.size_bytes + size_bytes <= MAX_CHUNK_BYTES
        return fits or not self.items

    def add(self, position: int, item: Item, size_bytes: int) -> None:
        """Add an item to the batch."""
        self.items[position] = item
        self.size_bytes += size_bytes

    def unfinished(self) -> TextMatchError | None:
        """Why another try is needed; None if all items are answered."""
        if not self.items:
            return None
        refusals = (result.error for result in self.refused.values() if result.error is not None)
        return self.lost or next(refusals, DependencyUnavailable("the server did not answer all items"))


class BatchStream(ABC, Generic[Item, Result]):
    """One run over some items.

    Args:
        timeout_seconds: of each call.
        stall_timeout_seconds: how long to try again while the server answers none of a batch.
    """

    max_items: ClassVar[int]
    max_in_flight: ClassVar[int]

    def __init__(self, server: Connection, *, timeout_seconds: float, stall_timeout_seconds: float) -> None:
        self._server = server
        self._timeout_seconds = timeout_seconds
        self._stall_timeout_seconds = stall_timeout_seconds
        self._in_flight: deque[Batch[Item, Result]] = deque()
        self._keys: set[str] = set()
        self._progress_at = 0.0

    async def run(self, values: Values) -> AsyncGenerator[Result, None]:
        """Send the items and yield one result for each. An invalid item is reported before its neighbours.

        Raises:
            TextMatchError: the server cannot be reached, or answers no item for `stall_timeout_seconds`, or
                fails with an error that no retry mends.
        """
        batch, position = Batch[Item, Result](), -1
        try:
            async for value in _each(values):
                position += 1
                try:
                    item = self._item(value)
                except InvalidInput as error:
                    yield self._failure(position, value, error)
                    continue
                if not self._fits(batch, item):
                    async for result in self._make_room(batch, item):
                        yield result
                    batch = Batch()
                self._add(batch, position, item)
            async for result in self._drain(batch):
                yield result
        finally:
            for unfinished in self._in_flight:
                if unfinished.call is not None:
                    unfinished.call.cancel()

    def _fits(self, batch: Batch[Item, Result], item: Item) -> bool:
        return self._key(item) not in self._keys and batch.has_room_for(
            self._size_bytes(item), self.max_items
        )

    def _add(self, batch: Batch[Item, Result], position: int, item: Item) -> None:
        batch.add(position, item, self._size_bytes(item))
        if (key := self._key(item)) is not None:
            self._keys.add(key)

    async def _make_room(self, batch: Batch[Item, Result], item: Item) -> AsyncIterator[Result]:
        """Send the batch, and wait until nothing with the key of the item is in flight."""
        async for result in self._send(batch):
            yield result
        while self._key(item) in self._keys:
            async for result in self._finish_oldest():
                yield result

    async def _drain(self, batch: Batch[Item, Result]) -> AsyncIterator[Result]:
        """Send the last batch, and wait for all answers."""
        async for result in self._send(batch):
            yield result
        while self._in_flight:
            async for result in self._finish_oldest():
                yield result

    async def _send(self, batch: Batch[Item, Result]) -> AsyncIterator[Result]:
        if not batch.items:
            return
        if len(self._in_flight) == self.max_in_flight:
            async for result in self._finish_oldest():
                yield result
        self._start(batch)
        self._in_flight.append(batch)

    def _start(self, batch: Batch[Item, Result]) -> StartedCall[Any]:
        batch.sent = list(batch.items)
        batch.call = self._server.start(self._method(), self._request(batch), self._timeout_seconds)
        return batch.call

    async def _finish_oldest(self) -> AsyncIterator[Result]:
        """Wait for the answers to the oldest batch. Items that are refused for now are sent again.

        If the time for retries ends, items that were refused come with their error, unless no item of the
        batch was answered.
        """
        batch = self._in_flight[0]
        item_count = len(batch.items)
        self._progress_at = time.monotonic()
        policy = RetryPolicy(max_backoff_seconds=_MAX_BACKOFF_SECONDS)
        try:
            async for attempt in policy.attempts(self._deadline, self._server.sleep):
                async for result in self._answers(batch):
                    yield result
                    self._progress_at = time.monotonic()
                with attempt:
                    if (error := batch.unfinished()) is not None:
                        batch.call = None
                        raise error
        except TextMatchError as error:
            is_answered_in_part = len(batch.refused) == len(batch.items) < item_count
            if not (error.is_transient and is_answered_in_part):
                raise
            for position, result in batch.refused.items():
                self._settle(batch, position)
                yield result
        self._in_flight.popleft()

    def _deadline(self) -> float:
        return self._progress_at + self._stall_timeout_seconds

    async def _answers(self, batch: Batch[Item, Result]) -> AsyncIterator[Result]:
        """One try: the answers that are final. `batch` has what is left.

        Raises:
            TextMatchError: an error that no retry mends.
        """
        call = batch.call or self._start(batch)
        batch.refused, batch.lost = {}, None
        try:
            async for response in call.responses():
                self._server.note_answer()
                for position, result in self._results(batch, response):
                    if position not in batch.items:
                        continue
                    if result.error is not None and result.error.is_transient:
                        batch.refused[position] = result
                        continue
                    self._settle(batch, position)
                    yield result
        except TextMatchError as error:
            if not self._server.may_recover(error):
                raise
            batch.lost = error

    def _settle(self, batch: Batch[Item, Result], position: int) -> None:
        key = self._key(batch.items.pop(position))
        if key is not None:
            self._keys.discard(key)

    def _key(self, item: Item) -> str | None:
        """Items with the same key are not in flight at the same time, because the later one must win."""
        return None

    @abstractmethod
    def _item(self, value: Any) -> Item:
        """The checked and converted value.

        Raises:
            InvalidInput: it cannot be sent.
        """

    @abstractmethod
    def _failure(self, position: int, value: Any, error: TextMatchError) -> Result:
        """The result of a value that cannot be sent."""

    @abstractmethod
    def _size_bytes(self, item: Item) -> int:
        """The size of an item on the wire."""

    @abstractmethod
    def _method(self) -> Method[Any, Any]:
        """The method that takes a batch."""

    @abstractmethod
    def _request(self, batch: Batch[Item, Result]) -> Any:
        """A request with the items of `sent`."""

    @abstractmethod
    def _results(self, batch: Batch[Item, Result], response: Any) -> Sequence[tuple[int, Result]]:
        """The position and the result of each item of a response."""


class DocumentStream(BatchStream[pb.Document, DocumentResult]):
    """Stores documents."""

    max_items = 200
    max_in_flight = 4

    def __init__(self, server: Connection, collection: str, **timeouts: float) -> None:
        super().__init__(server, **timeouts)
        self._collection = collection

    def _item(self, value: Any) -> pb.Document:
        return to_proto(to_document(value))

    def _failure(self, position: int, value: Any, error: TextMatchError) -> DocumentResult:
        return rejection(position, _id_of(value), error)

    def _size_bytes(self, item: pb.Document) -> int:
        return item.ByteSize()

    def _key(self, item: pb.Document) -> str | None:
        return item.id

    def _method(self) -> Method[Any, Any]:
        return INGEST_DOCUMENTS

    def _request(self, batch: Batch[pb.Document, DocumentResult]) -> pb.IngestDocumentsRequest:
        return pb.IngestDocumentsRequest(
            documents=batch.items.values(), request_id=batch.request_id, collection=self._collection
        )

    def _results(
        self, batch: Batch[pb.Document, DocumentResult], response: pb.IngestDocumentsResponse
    ) -> Sequence[tuple[int, DocumentResult]]:
        results = ingest_results_from_proto(batch.sent, response.results)
        return [(result.position, result) for result in results]


class QueryStream(BatchStream[str, BatchMatchResult]):
    """Answers queries, in the bulk lane."""

    max_items = 100
    max_in_flight = 1

    def __init__(
        self, server: Connection, options: pb.MatchOptions, collection: str, **timeouts: float
    ) -> None:
        super().__init__(server, **timeouts)
        self._match_options = options
        self._collection = collection

    def _item(self, value: Any) -> str:
        return to_text("query", value)

    def _failure(self, position: int, value: Any, error: TextMatchError) -> BatchMatchResult:
        return BatchMatchResult(position, None, error)

    def _size_bytes(self, item: str) -> int:
        return utf8_bytes(item)

    def _method(self) -> Method[Any, Any]:
        return BATCH_MATCH

    def _request(self, batch: Batch[str, BatchMatchResult]) -> pb.BatchMatchRequest:
        return pb.BatchMatchRequest(
            queries=batch.items.values(), options=self._match_options, collection=self._collection
        )

    def _results(
        self, batch: Batch[str, BatchMatchResult], response: pb.BatchMatchResponse
    ) -> Sequence[tuple[int, BatchMatchResult]]:
        position = batch.sent[response.query_index]
        query = batch.items.get(position, "")
        return [(position, batch_result_from_proto(position, query, response))]


async def in_order(results: AsyncIterator[BatchMatchResult]) -> AsyncGenerator[BatchMatchResult, None]:
    """The results in the order of the queries, each as soon as those before it are there."""
    held: dict[int, BatchMatchResult] = {}
    following = 0
    async for result in results:
        held[result.query_index] = result
        while following in held:
            yield held.pop(following)
            following += 1


async def _each(values: Values) -> AsyncIterator[Any]:
    if isinstance(values, AsyncIterable):
        async for value in values:
            yield value
    else:
        for value in values:
            yield value


def _id_of(value: Any) -> str:
    """The id of a document that may not be valid."""
    if isinstance(value, Document):
        document_id: Any = value.id
    else:
        document_id = value.get("id") if isinstance(value, Mapping) else None
    return document_id if isinstance(document_id, str) else ""


class WatchedQueue:
    """A queue that is waited for: whether it moves, and what it waits for.

    Args:
        limit_seconds: how long to wait in all.
        on_problem: called with each new reason for which the queue does not move, or cannot be read.
        stall_timeout_seconds: how long until it is a problem that nothing moves for no known reason. A few
            times as long, it is an error: a document of the largest size takes minutes on a CPU.
    """

    def __init__(
        self, limit_seconds: float, on_problem: Callable[[str], None], *, stall_timeout_seconds: float
    ) -> None:
        self._stall_timeout_seconds = stall_timeout_seconds
        self._limit_seconds = limit_seconds
        self._on_problem = on_problem
        self._started = self._moved_at = time.monotonic()
        self._count = -1
        self._problem = ""

    def is_waiting(self, status: IngestStatus, asked: float) -> bool:
        """Whether documents that were accepted before the start still wait.

        Raises:
            DeadlinePassed: the time is over, or the queue does not move for no known reason.
        """
        # An age of 0 says nothing: versions run ahead of a clock that was set back.
        if status.queued_count == 0 or 0 < status.oldest_queued_seconds < asked - self._started:
            return False
        problem = "; ".join(problem.message for problem in status.problems)
        if status.queued_count != self._count or problem:
            self._count, self._moved_at = status.queued_count, asked
        stalls = int((asked - self._moved_at) / self._stall_timeout_seconds)
        if stalls:
            problem = (
                f"{self._count:,} documents are queued, and their number has not changed for "
                f"{stalls * self._stall_timeout_seconds:g} seconds; are the workers running?"
            )
        if stalls >= _MAX_STALLS:
            raise DeadlinePassed(problem)
        self._note(problem)
        self._check_limit(f"{self._count:,} documents are queued after {self._limit_seconds:g} seconds")
        return True

    def failed(self, error: TextMatchError, asked: float) -> None:
        """The status could not be read. What was accepted stays accepted.

        Raises:
            TextMatchError: waiting does not help, or has not helped for long.
        """
        if not error.is_transient or asked - self._moved_at > self._stall_timeout_seconds:
            raise error
        self._note(str(error))
        self._check_limit(f"the queue is not known after {self._limit_seconds:g} seconds: {error}")

    def _note(self, problem: str) -> None:
        if problem and problem != self._problem:
            self._on_problem(problem)
        self._problem = problem

    def _check_limit(self, message: str) -> None:
        if time.monotonic() - self._started > self._limit_seconds:
            raise DeadlinePassed(message)
