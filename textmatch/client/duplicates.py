"""The pages of FindDuplicates: a call compares some documents, and the next call goes on after them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from textmatch.client import arguments
from textmatch.client.connection import FIND_DUPLICATES, Connection
from textmatch.errors import DependencyUnavailable, TextMatchError
from textmatch.retry import RetryPolicy
from textmatch.types import DuplicateOptions, DuplicatePage
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.duplicates import duplicates_request, page_from_proto

_MAX_BACKOFF_SECONDS = 1.0


def to_request(given: dict[str, Any], *, collection: str, against: Any) -> pb.FindDuplicatesRequest:
    """The checked arguments of `find_duplicates` as a message."""
    where = given["where"]
    options = DuplicateOptions(
        min_score=arguments.to_number("min_score", given["min_score"]),
        neighbors=arguments.to_whole_number("neighbors", given["neighbors"]),
        where=None if where is None else arguments.to_condition("where", where),
        rerank=arguments.to_flag("rerank", given["rerank"]),
        omit_text=arguments.to_flag("omit_text", given["omit_text"]),
        resume_token=arguments.to_name("resume_token", given["resume_token"]),
    )
    return duplicates_request(options, collection=collection, against=arguments.to_name("against", against))


class DuplicateStream:
    """One search. What is refused for now, or not answered, is asked again after the last complete page.

    Args:
        timeout_seconds: of each call.
        stall_timeout_seconds: how long to try again while no page comes.
    """

    def __init__(
        self,
        server: Connection,
        request: pb.FindDuplicatesRequest,
        *,
        timeout_seconds: float,
        stall_timeout_seconds: float,
    ) -> None:
        self._server = server
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._stall_timeout_seconds = stall_timeout_seconds
        self._progress_at = 0.0

    async def run(self) -> AsyncGenerator[DuplicatePage, None]:
        """The pages, each once.

        Raises:
            TextMatchError: no page came for `stall_timeout_seconds`, or no retry mends the error.
        """
        self._progress_at = time.monotonic()
        is_last = False
        while not is_last:
            policy = RetryPolicy(retry_on=self._server.may_recover, max_backoff_seconds=_MAX_BACKOFF_SECONDS)
            async for attempt in policy.attempts(self._deadline, self._server.sleep):
                failure: TextMatchError | None = None
                try:
                    async for page in self._pages():
                        self._progress_at = time.monotonic()
                        self._request.resume_token, is_last = page.resume_token, page.is_last
                        yield page
                except TextMatchError as error:
                    failure = error
                with attempt:
                    if failure is not None:
                        raise failure

    async def _pages(self) -> AsyncGenerator[DuplicatePage, None]:
        """The complete pages of one call.

        Raises:
            TextMatchError: the call failed.
        """
        call = self._server.start(FIND_DUPLICATES, self._request, self._timeout_seconds)
        parts: list[pb.FindDuplicatesResponse] = []
        has_pages = False
        try:
            async for response in call.responses():
                self._server.note_answer()
                parts.append(response)
                if response.compared_count or response.is_last:
                    has_pages = True
                    yield page_from_proto(parts)
                    parts = []
        finally:
            call.cancel()
        if not has_pages:
            raise DependencyUnavailable("the server did not answer")

    def _deadline(self) -> float:
        return self._progress_at + self._stall_timeout_seconds
