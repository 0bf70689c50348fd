"""Calls to one server. Each has a deadline, and fails with a TextMatchError. Long inputs go in chunks."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import grpc

from textmatch.errors import DeadlinePassed, DependencyUnavailable, InvalidInput, TextMatchError, Violation
from textmatch.runtime.channel import Metadata, call_metadata, open_channel
from textmatch.runtime.grpc_errors import DETAILS_METADATA_KEY, from_rpc_error
from textmatch.runtime.tls import ClientTls

Item = TypeVar("Item")
Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)

# Size limit of one call. gRPC accepts larger messages, but progress would be coarse.
MAX_CHUNK_BYTES = 4 * 1024 * 1024
# Two calls at a time keep the server busy while an answer travels.
_CALLS_IN_FLIGHT = 2
_POSITION = re.compile(r"(texts|pairs)\[(\d+)\]")


class UnaryMethod(Protocol[Request, Response]):
    """A method of a stub with one request and one response."""

    def __call__(
        self, request: Request, timeout: float | None = None, metadata: Metadata | None = None
    ) -> Response:
        """Wait for the response."""

    def future(self, request: Request, timeout: float | None = None, metadata: Metadata | None = None) -> Any:
        """Start the call."""


class ServerUnreachable(DependencyUnavailable):
    """No gRPC server answers at the address."""

    def __init__(self, server: str, address: str) -> None:
        super().__init__(f"the {server} at {address} does not answer")
        self.server = server
        self.address = address


class Connection:
    """One server at one address. Connects with the first call, and again after the connection is lost."""

    def __init__(self, name: str, address: str, api_key: str = "", tls: ClientTls | None = None) -> None:
        self.name = name
        self.address = address
        self.metadata = call_metadata(api_key)
        self.channel = open_channel(address, tls)

    def call(
        self, method: UnaryMethod[Request, Response], request: Request, timeout_seconds: float
    ) -> Response:
        """Call and wait.

        Raises:
            TextMatchError: the call failed.
        """
        with self.translated_errors(timeout_seconds):
            return method(request, timeout=timeout_seconds, metadata=self.metadata)

    def call_each(
        self,
        method: UnaryMethod[Request, Response],
        requests: Iterable[tuple[int, Request]],
        timeout_seconds: float,
    ) -> Iterator[Response]:
        """Call with each request, a few at a time. Responses come in the order of the requests.

        Args:
            requests: each with the position of its first item in the whole input, for errors.

        Raises:
            TextMatchError: a call failed; the others are cancelled.
        """
        running: deque[tuple[int, Any]] = deque()
        try:
            for start, request in requests:
                call = method.future(request, timeout=timeout_seconds, metadata=self.metadata)
                running.append((start, call))
                if len(running) == _CALLS_IN_FLIGHT:
                    yield self._result(*running.popleft(), timeout_seconds)
            while running:
                yield self._result(*running.popleft(), timeout_seconds)
        finally:
            for _, call in running:
                call.cancel()

    @contextmanager
    def translated_errors(self, timeout_seconds: float) -> Iterator[None]:
        """Turn gRPC's errors into TextMatchErrors. An error that the server did not send names the server."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._translated(error, timeout_seconds) from error

    def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        self.channel.close()

    def _result(self, start: int, call: Any, timeout_seconds: float) -> Any:
        try:
            with self.translated_errors(timeout_seconds):
                return call.result()
        except InvalidInput as error:
            raise InvalidInput([_moved(violation, start) for violation in error.violations]) from error

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


def _moved(violation: Violation, start: int) -> Violation:
    """With the item's position in the whole input instead of the chunk."""
    field = _POSITION.sub(lambda found: f"{found[1]}[{int(found[2]) + start}]", violation.field)
    return replace(violation, field=field)


def utf8_bytes(text: str) -> int:
    """The size of a text on the wire."""
    return len(text.encode())
