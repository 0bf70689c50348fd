"""A matcher that reads ahead, answers late and refuses: how a client handles flow control and RetryInfo."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.support.scripted_servicer import ScriptedMatcher
from textmatch.errors import Overloaded
from textmatch.v1 import matcher_service_pb2 as pb


class RefusingMatcher(ScriptedMatcher):
    """Answers two requests of the first stream and refuses the third; answers all of the second stream.

    Attributes:
        unanswered: how many requests had been read and not answered, before each answer and the refusal.
        resumed_after_seconds: between the refusal and the second stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.streams = 0
        self.refused_at = 0.0
        self.resumed_after_seconds = 0.0
        self.unanswered: list[int] = []

    async def IngestDocuments(
        self, request_iterator: AsyncIterator[pb.IngestDocumentsRequest], context: Any
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        self.streams += 1
        if self.streams > 1:
            self.resumed_after_seconds = time.monotonic() - self.refused_at
            async for response in super().IngestDocuments(request_iterator, context):
                yield response
            return
        waiting: list[pb.IngestDocumentsRequest] = []
        reading = asyncio.create_task(self._read(request_iterator, waiting))
        for _ in range(2):
            self.unanswered.append(await _settled_length(waiting))
            request = waiting.pop(0)
            yield pb.IngestDocumentsResponse(results=[self._take(item) for item in request.documents])
        self.unanswered.append(await _settled_length(waiting))
        reading.cancel()
        self.refused_at = time.monotonic()
        raise Overloaded("the queue is full", retry_delay_seconds=0.7)

    async def _read(
        self, requests: AsyncIterator[pb.IngestDocumentsRequest], waiting: list[pb.IngestDocumentsRequest]
    ) -> None:
        async for request in requests:
            self.request_ids.append(request.request_id)
            waiting.append(request)


async def _settled_length(waiting: list[pb.IngestDocumentsRequest]) -> int:
    """How many requests wait once none has come for a second: all, if a client ignores flow control."""
    length = -1
    while length != len(waiting) or not waiting:
        length = len(waiting)
        await asyncio.sleep(1.0)
    return length
