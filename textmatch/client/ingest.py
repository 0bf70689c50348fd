"""Sending documents: in batches, a few under way at a time, again when the queue was full."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from textmatch.client.connection import Connection, ServerUnreachable
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
MAX_BATCH_BYTES = 4 * 1024 * 1024
MAX_BATCHES_UNDER_WAY = 4
_MAX_BACKOFF_SECONDS = 1.0


@dataclass
class IngestBatch:
    """Documents that travel together, by their position in the input."""

    documents: dict[int, pb.Document] = field(default_factory=dict)
    size_bytes: int = 0
    call: Any = None

    def has_room_for(self, document: pb.Document) -> bool:
        """Whether the batch stays within the limits with this document."""
        fits = self.size_bytes + document.ByteSize() <= MAX_BATCH_BYTES
        return not self.documents or (fits and len(self.documents) < MAX_BATCH_DOCUMENTS)

    def add(self, position: int, document: pb.Document) -> None:
        """Put a document into the batch."""
        self.documents[position] = document
        self.size_bytes += document.ByteSize()


class IngestStream:
    """One run over some documents. Holds no more than a few batches, however many documents there are.

    Each batch is a call of its own, so that it has its own deadline and goes to any replica. A document whose
    id is already under way waits for the earlier one to be answered: the later one must win.
    """

    def __init__(
        self,
        server: Connection,
        stub: pb_grpc.MatcherServiceStub,
        *,
        timeout_seconds: float,
        patience_seconds: float,
    ) -> None:
        self._server = server
        self._stub = stub
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self._under_way: deque[IngestBatch] = deque()
        self._ids: set[str] = set()
        self._has_answered = False
        self._progress_at = time.monotonic()

    def run(self, documents: Iterable[DocumentLike]) -> Iterator[DocumentResult]:
        """Send the documents and yield one result for each; a bad one comes at once, ahead of its neighbours.

        Raises:
            TextMatchError: the matcher cannot be reached, or took nothing for as long as we are patient.
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
            while self._under_way:
                yield from self._finish_oldest()
        finally:
            for unfinished in self._under_way:
                if unfinished.call is not None:
                    unfinished.call.cancel()

    def _send(self, batch: IngestBatch) -> Iterator[DocumentResult]:
        if not batch.documents:
            return
        if len(self._under_way) == MAX_BATCHES_UNDER_WAY:
            yield from self._finish_oldest()
        batch.call = self._start(batch)
        self._under_way.append(batch)

    def _start(self, batch: IngestBatch) -> Any:
        request = pb.IngestDocumentsRequest(documents=batch.documents.values())
        return self._stub.IngestDocuments(
            iter((request,)), timeout=self._timeout_seconds, metadata=self._server.metadata
        )

    def _finish_oldest(self) -> Iterator[DocumentResult]:
        """Wait for the answer to the oldest batch; send again what could not be taken just now."""
        batch = self._under_way[0]
        policy = RetryPolicy(max_backoff_seconds=_MAX_BACKOFF_SECONDS)
        for attempt in policy.attempts(lambda: self._progress_at + self._patience_seconds):
            if batch.call is None:
                batch.call = self._start(batch)
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
        self._under_way.popleft()

    def _answer(self, batch: IngestBatch) -> list[DocumentResult]:
        """One result for each document; a call that failed for now counts against all of its documents."""
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


def _id_of(value: DocumentLike) -> str:
    """The id of a document that may be anything."""
    document_id = value.id if isinstance(value, Document) else _mapping(value).get("id")
    return document_id if isinstance(document_id, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
