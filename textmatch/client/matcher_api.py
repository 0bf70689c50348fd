"""The calls to the matcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tenacity import Retrying, retry_if_result, wait_exponential

from textmatch.client.connection import Connection, chunks, utf8_bytes
from textmatch.client.ingest import IngestStream
from textmatch.documents import Document, id_violation, text_violation, version_violation
from textmatch.errors import DeadlinePassed, Violation, raise_violations
from textmatch.filters import Filter
from textmatch.types import (
    BatchMatchResult,
    DocumentResult,
    IngestStatus,
    MatchKeywords,
    MatchOptions,
    MatchResult,
    Rerank,
)
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc
from textmatch.wire.documents import DocumentLike, from_proto, ingest_status_from_proto
from textmatch.wire.matching import (
    batch_result_from_proto,
    default_candidate_count,
    filter_to_proto,
    options_to_proto,
    result_from_proto,
)

_QUERIES_PER_CALL = 100
_IDS_PER_CALL = 1_000
# How long the matcher may take no document, or the queue may not move, before the client gives up.
_STALL_TIMEOUT_SECONDS = 120.0
_FIRST_POLL_SECONDS = 0.05
_LAST_POLL_SECONDS = 1.0


class MatcherApi:
    """Matching, documents and ingest status at one matcher."""

    def __init__(self, server: Connection, timeout_seconds: float, bulk_timeout_seconds: float) -> None:
        self.server = server
        self._stub = pb_grpc.MatcherServiceStub(server.channel)
        self._timeout_seconds = timeout_seconds
        self._bulk_timeout_seconds = bulk_timeout_seconds

    def match(self, query: str, options: MatchKeywords) -> MatchResult:
        """The best matches of one query."""
        raise_violations([text_violation("query", query)])
        request = pb.MatchRequest(query=query, options=options_to_proto(_options(options)))
        return result_from_proto(query, self.server.call(self._stub.Match, request, self._timeout_seconds))

    def batch_match(self, queries: Sequence[str], options: MatchKeywords) -> Iterator[BatchMatchResult]:
        """The best matches of many queries, each as soon as it is ready."""
        raise_violations(
            text_violation(f"queries[{position}]", query) for position, query in enumerate(queries)
        )
        return self._batch_match(queries, options_to_proto(_options(options)))

    def _batch_match(self, queries: Sequence[str], options: pb.MatchOptions) -> Iterator[BatchMatchResult]:
        for start, chunk in chunks(queries, utf8_bytes, _QUERIES_PER_CALL):
            request = pb.BatchMatchRequest(queries=chunk, options=options)
            call = self._stub.BatchMatch(
                request, timeout=self._bulk_timeout_seconds, metadata=self.server.metadata
            )
            try:
                with self.server.translated_errors(self._bulk_timeout_seconds):
                    for response in call:
                        yield batch_result_from_proto(start, chunk, response)
            finally:
                call.cancel()  # type: ignore[no-untyped-call]

    def ingest(self, documents: Iterable[DocumentLike]) -> Iterator[DocumentResult]:
        """Send documents; one result for each."""
        stream = IngestStream(
            self.server,
            self._stub,
            timeout_seconds=self._bulk_timeout_seconds,
            stall_timeout_seconds=_STALL_TIMEOUT_SECONDS,
        )
        return stream.run(documents)

    def get_document(self, document_id: str) -> Document:
        """A stored document."""
        raise_violations([id_violation("id", document_id)])
        request = pb.GetDocumentRequest(id=document_id)
        return from_proto(self.server.call(self._stub.GetDocument, request, self._timeout_seconds).document)

    def delete(self, ids: Sequence[str], version: int | None) -> int:
        """Delete documents by their ids."""
        violations = [id_violation(f"ids[{position}]", one) for position, one in enumerate(ids)]
        raise_violations([*violations, _version_violation(version)])
        return sum(
            self._delete(pb.DeleteDocumentsRequest(ids=chunk, version=version))
            for _, chunk in chunks(ids, utf8_bytes, _IDS_PER_CALL)
        )

    def delete_where(self, where: Filter, version: int | None) -> int:
        """Delete the documents that fit a filter."""
        raise_violations([_version_violation(version)])
        return self._delete(
            pb.DeleteDocumentsRequest(filter=filter_to_proto(where, "where"), version=version)
        )

    def _delete(self, request: pb.DeleteDocumentsRequest) -> int:
        response = self.server.call(self._stub.DeleteDocuments, request, self._bulk_timeout_seconds)
        return response.deleted_count

    def ingest_status(self, document_id: str) -> IngestStatus:
        """The queue, and one document if its id is given."""
        if document_id:
            raise_violations([id_violation("document_id", document_id)])
        request = pb.GetIngestStatusRequest(document_id=document_id)
        return ingest_status_from_proto(
            self.server.call(self._stub.GetIngestStatus, request, self._timeout_seconds)
        )

    def wait_until_searchable(self, on_status: Callable[[IngestStatus], None] | None) -> None:
        """Wait until the queue is empty, or until its oldest document is younger than this call.

        Documents that others add in the meantime do not prolong it.
        """
        started = moved_at = time.monotonic()
        last_count = -1

        def are_waiting() -> bool:
            nonlocal moved_at, last_count
            asked = time.monotonic()
            status = self.ingest_status("")
            if on_status is not None:
                on_status(status)
            if status.queued_count == 0 or status.oldest_queued_seconds < asked - started:
                return False
            if status.queued_count != last_count:
                last_count, moved_at = status.queued_count, asked
            elif asked - moved_at > _STALL_TIMEOUT_SECONDS:
                raise DeadlinePassed(
                    f"{last_count:,} documents are queued, and their number has not changed for "
                    f"{_STALL_TIMEOUT_SECONDS:g} seconds; are the workers running?"
                )
            return True

        Retrying(
            retry=retry_if_result(bool),
            wait=wait_exponential(_FIRST_POLL_SECONDS, max=_LAST_POLL_SECONDS),
        )(are_waiting)


def _options(keywords: MatchKeywords) -> MatchOptions:
    given: dict[str, Any] = dict(keywords)
    given.setdefault("candidate_count", default_candidate_count(given.get("top_k", MatchOptions.top_k)))
    if isinstance(rerank := given.get("rerank"), bool):
        given["rerank"] = Rerank.CROSS_ENCODER if rerank else Rerank.NONE
    return MatchOptions(**given)


def _version_violation(version: int | None) -> Violation | None:
    return None if version is None else version_violation("version", version)
