"""Sends documents in batches, several in flight, and sends refused documents again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from textmatch.client.connection import MAX_CHUNK_BYTES, Connection, ServerUnreachable
from textmatch.documents import Document
from textmatch.errors import InvalidInput, TextMatchError
from textmatch.retry import RetryPolicy
from textmatch.types import DocumentResult
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc
from textmatch.wire.documents import (
    DocumentLike,
    ingest_results_from_proto,
    rejection,
    to_document,
    to_proto,
)

MAX_BATCH_DOCUMENTS = 200
MAX_BATCHES_IN_FLIGHT = 4
_MAX_BACKOFF_SECONDS = 1.0


@dataclass
class IngestBatch:
    """Documents of one call, by their position in the input. `call` is None before it is sent."""

    documents: dict[int, pb.Document] = field(default_factory=dict)
    size_bytes: int = 0
    call: Any = None

    def has_room_for(self, document: pb.Document) -> bool:
        """Whether the batch stays within the limits with this document."""
        fits = self.size_bytes + document.ByteSize() <= MAX_CHUNK_BYTES
        return not self.documents or (fits and len(self.documents) < MAX_BATCH_DOCUMENTS)

    def add(self, position: int, document: pb.Document) -> None:
        """Add a document to the batch."""
        self.documents[position] = document
        self.size_bytes += document.ByteSize()


class IngestStream:
    """One run over some documents. Holds only a few batches in memory.

    Each batch is a call of its own, with its own deadline, and may go to any replica. A document whose id is
    in flight waits until the earlier one is answered, because the later one must win.

    Args:
        timeout_seconds: of each call.
        stall_timeout_seconds: how long to retry while the matcher accepts no document.
    """

    def __init__(
        self,
        server: Connection,
        stub: pb_grpc.MatcherServiceStub,
        *,
        timeout_seconds: float,
        stall_timeout_seconds: float,
    ) -> None:
        self._server = server
        self._stub = stub
        self._timeout_seconds = timeout_seconds
        self._stall_timeout_seconds = stall_timeout_seconds
        self._in_flight: deque[IngestBatch] = deque()
        self._ids: set[str] = set()
        self._has_answered = False
        self._progress_at = time.monotonic()

    def run(self, documents: Iterable[DocumentLike]) -> Iterator[DocumentResult]:
        """Send the documents and yield one result for each. A bad document is reported before its neighbours.

        Raises:
            TextMatchError: the matcher cannot be reached, or accepts no document for `stall_timeout_seconds`.
        """
        batch = IngestBatch()
        try:
            for position, value in enumerate(documents):
                try:
                    document = to_proto(to_document(value))
                except InvalidInput as error:
                    yield rejection(position, _id_of(value), error)
                    continue
                if document.id in self._ids or not batch.has_room_for(document):
                    yield from self._send(batch)
                    batch = IngestBatch()
                while document.id in self._ids:
                    yield from self._finish_oldest()
                batch.add(position, document)
                self._ids.add(document.id)
            yield from self._send(batch)
            while self._in_flight:
                yield from self._finish_oldest()
        finally:
            for unfinished in self._in_flight:
                if unfinished.call is not None:
                    unfinished.call.cancel()

    def _send(self, batch: IngestBatch) -> Iterator[DocumentResult]:
        if not batch.documents:
            return
        if len(self._in_flight) == MAX_BATCHES_IN_FLIGHT:
            yield from self._finish_oldest()
        self._start(batch)
        self._in_flight.append(batch)

    def _start(self, batch: IngestBatch) -> None:
        request = pb.IngestDocumentsRequest(documents=batch.documents.values())
        batch.call = self._stub.IngestDocuments(
            iter((request,)), timeout=self._timeout_seconds, metadata=self._server.metadata
        )

    def _finish_oldest(self) -> Iterator[DocumentResult]:
        """Wait for the answer to the oldest batch. Documents that were refused temporarily are sent again."""
        batch = self._in_flight[0]
        policy = RetryPolicy(max_backoff_seconds=_MAX_BACKOFF_SECONDS)
        for attempt in policy.attempts(lambda: self._progress_at + self._stall_timeout_seconds):
            if batch.call is None:
                self._start(batch)
            refusal: TextMatchError | None = None
            for result in self._answer(batch):
                if result.error is not None and result.error.is_transient:
                    refusal = result.error
                    continue
                self._ids.discard(batch.documents.pop(result.position).id)
                self._progress_at = time.monotonic()
                yield result
            with attempt:
                if refusal is not None:
                    batch.call = None
                    raise refusal
        self._in_flight.popleft()

    def _answer(self, batch: IngestBatch) -> list[DocumentResult]:
        """One result for each document. If the call failed temporarily, all have its error."""
        try:
            with self._server.translated_errors(self._timeout_seconds):
                responses: list[pb.IngestDocumentsResponse] = list(batch.call)
        except TextMatchError as error:
            never_answered = isinstance(error, ServerUnreachable) and not self._has_answered
            if never_answered or not error.is_transient:
                raise
            return [rejection(position, document.id, error) for position, document in batch.documents.items()]
        self._has_answered = True
        results = [result for response in responses for result in response.results]
        return ingest_results_from_proto(batch.documents, results)


def _id_of(value: Any) -> str:
    """The id of a document that may not be valid."""
    if isinstance(value, Document):
        document_id: Any = value.id
    else:
        document_id = value.get("id") if isinstance(value, Mapping) else None
    return document_id if isinstance(document_id, str) else ""
