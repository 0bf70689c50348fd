"""The document calls of the matcher's servicer, without a network in between."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from services.matcher.documents import DocumentsHandler
from services.matcher.ingest import IngestHandler
from services.matcher.servicer import MatcherServicer
from tests.integration.ingest.indexing import IngestState
from tests.support.collections import FixedStore
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import IngestRequest


@dataclass(frozen=True)
class Call:
    """The context of a call, as far as the servicer reads it."""

    deadline: float | None

    def time_remaining(self) -> float | None:
        return None if self.deadline is None else self.deadline - time.monotonic()


async def _as_received(
    requests: AsyncIterator[pb.IngestDocumentsRequest],
) -> AsyncIterator[IngestRequest]:
    async for request in requests:
        yield IngestRequest(request.SerializeToString())


class DocumentCalls:
    """Calls the servicer with messages."""

    def __init__(self, state: IngestState) -> None:
        ingest, documents = IngestHandler(state.shared), DocumentsHandler(state.shared)
        self._servicer = MatcherServicer(
            FixedStore(state.collection),
            None,
            ingest,
            documents,
            None,
            match_timeout_seconds=10,
            batch_match_concurrency=1,
        )

    def ingest(
        self, requests: AsyncIterator[pb.IngestDocumentsRequest], deadline: float | None = None
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        return self._servicer.IngestDocuments(_as_received(requests), Call(deadline))

    async def get(self, request: pb.GetDocumentRequest) -> pb.GetDocumentResponse:
        return await self._servicer.GetDocument(request, Call(None))

    async def get_many(self, request: pb.GetDocumentsRequest) -> pb.GetDocumentsResponse:
        return await self._servicer.GetDocuments(request, Call(None))

    async def list(self, request: pb.ListDocumentsRequest) -> pb.ListDocumentsResponse:
        return await self._servicer.ListDocuments(request, Call(None))

    async def count(self, request: pb.CountDocumentsRequest) -> pb.CountDocumentsResponse:
        return await self._servicer.CountDocuments(request, Call(None))

    async def list_letters(self, request: pb.ListDeadLettersRequest) -> pb.ListDeadLettersResponse:
        return await self._servicer.ListDeadLetters(request, Call(None))

    async def replay(self, request: pb.ReplayDeadLettersRequest) -> pb.ReplayDeadLettersResponse:
        return await self._servicer.ReplayDeadLetters(request, Call(None))

    async def drop(self, request: pb.DropDeadLettersRequest) -> pb.DropDeadLettersResponse:
        return await self._servicer.DropDeadLetters(request, Call(None))

    async def delete(self, request: pb.DeleteDocumentsRequest) -> pb.DeleteDocumentsResponse:
        return await self._servicer.DeleteDocuments(request, Call(None))

    async def status(self, request: pb.GetIngestStatusRequest) -> pb.GetIngestStatusResponse:
        return await self._servicer.GetIngestStatus(request, Call(None))
