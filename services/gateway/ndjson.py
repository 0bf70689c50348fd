"""Streams of JSON lines, in and out, in constant memory.

Many callers send a whole upload before they read the first line of the answer. Lines that are not read yet go
into a temporary file, so such a caller neither waits forever nor fills the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, Self, TypeVar

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from textmatch.errors import DeadlinePassed, TextMatchError
from textmatch.io.line_reader import START, Line, UnreadableLine

Result = TypeVar("Result")

NDJSON = "application/x-ndjson"
# A document of the largest size in JSON, with some escapes.
MAX_LINE_BYTES = 8 * 1024 * 1024
_ACCEPTED = (NDJSON, "application/ndjson", "application/jsonl", "application/json")
_MEMORY_BYTES = 1024 * 1024
# With results of 100 bytes each, those of about five million lines.
_MAX_SPOOL_BYTES = 512 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024


def ndjson_content(line: type[BaseModel]) -> dict[str, Any]:
    """The content of an answer for OpenAPI."""
    # OpenAPI 3.1 has no schema for the lines of a stream; 3.2 has.
    item = {"$ref": f"#/components/schemas/{line.__name__}"}
    return {NDJSON: {"schema": {"type": "string"}, "x-item-schema": item}}


def check_media_type(request: Request) -> None:
    """Refuse a body that is not JSON lines.

    Raises:
        HTTPException: 415.
    """
    # Needed, because a page of another origin can send a body without one.
    given = request.headers.get("content-type", "missing").partition(";")[0].strip().lower()
    if given not in _ACCEPTED:
        raise HTTPException(415, f"the content type is {given}; it must be {NDJSON}")
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise HTTPException(415, f"the content encoding is {encoding}; it must be identity")


@dataclass(frozen=True)
class InputLine:
    """A line of a body, from 1: its JSON value, or the `problem` that it cannot be read for."""

    number: int
    value: Any = None
    problem: str = ""


class LineStream(AsyncIterator[InputLine]):
    """The lines of a body, without blank ones."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._lines = self._read(chunks)

    async def __anext__(self) -> InputLine:
        return await anext(self._lines)

    async def _read(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[InputLine]:
        number, rest, is_too_long = 0, b"", False
        async for chunk in chunks:
            *complete, rest = (rest + chunk).split(b"\n")
            for content in complete:
                number += 1
                if (line := _input_line(number, content, is_too_long)) is not None:
                    yield line
                is_too_long = False
            if len(rest) > MAX_LINE_BYTES:
                rest, is_too_long = b"", True
            # Other requests go on while a fast upload is read.
            await asyncio.sleep(0)
        if (line := _input_line(number + 1, rest, is_too_long)) is not None:
            yield line


async def in_time(
    results: AsyncIterator[Result], timeout_seconds: float | None
) -> AsyncIterator[Result | TextMatchError]:
    """The results of a call, within the time limit of the whole answer.

    An error after the first result comes as the last item, because the answer has begun.

    Raises:
        TextMatchError: before the first result.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds if timeout_seconds is not None else None
    has_begun = False
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                result = await anext(results, None)
        except (TextMatchError, TimeoutError) as error:
            failure = DeadlinePassed("the time limit passed") if isinstance(error, TimeoutError) else error
            if not has_begun:
                raise failure from None
            yield failure
            return
        if result is None:
            return
        has_begun = True
        yield result


class NdjsonResponse(StreamingResponse):
    """An answer of JSON lines. It does not read the body of the request, which may still be arriving."""

    media_type = NDJSON

    @classmethod
    async def started(cls, lines: AsyncIterator[BaseModel]) -> Self:
        """The answer, as soon as the first line is known.

        Raises:
            TextMatchError: nothing was answered; the status of the answer says so.
        """
        spool = _Spool(lines)
        await spool.first_line()
        return cls(spool.chunks())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


class _Spool:
    """Lines that the caller has not read yet: a task writes them into a file, the answer reads it."""

    def __init__(self, lines: AsyncIterator[BaseModel]) -> None:
        self._lines = lines
        self._file = SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115 -- _close() does
        self._read_bytes = self._written_bytes = 0
        self._has_news, self._has_room = asyncio.Event(), asyncio.Event()
        self._filling = asyncio.create_task(self._fill())

    async def first_line(self) -> None:
        """Wait for the first line, or the end.

        Raises:
            TextMatchError: the source failed before its first line.
        """
        try:
            await self._has_news.wait()
            if not self._written_bytes:
                await self._filling
        except BaseException:
            self._close()
            raise

    async def chunks(self) -> AsyncIterator[bytes]:
        """What was written, in parts."""
        try:
            while True:
                if chunk := self._take():
                    yield chunk
                elif self._filling.done():
                    break
                else:
                    self._has_news.clear()
                    await self._has_news.wait()
            await self._filling
        finally:
            self._close()

    def _close(self) -> None:
        self._filling.cancel()
        self._file.close()

    async def _fill(self) -> None:
        self._filling.add_done_callback(lambda _: self._has_news.set())
        async for line in self._lines:
            while self._written_bytes - self._read_bytes >= _MAX_SPOOL_BYTES:
                self._has_room.clear()
                await self._has_room.wait()
            content = line.model_dump_json(exclude_defaults=True).encode() + b"\n"
            self._file.seek(self._written_bytes)
            self._written_bytes += self._file.write(content)
            self._has_news.set()

    def _take(self) -> bytes:
        """The next part that was written; empty if there is none."""
        self._file.seek(self._read_bytes)
        chunk = self._file.read(_CHUNK_BYTES)
        self._read_bytes += len(chunk)
        if chunk and self._read_bytes == self._written_bytes:
            self._file.seek(0)
            self._file.truncate()
            self._read_bytes = self._written_bytes = 0
        self._has_room.set()
        return chunk


def _input_line(number: int, content: bytes, is_too_long: bool) -> InputLine | None:
    """None for a blank line."""
    if is_too_long or len(content) > MAX_LINE_BYTES:
        return InputLine(number, problem=f"is longer than {MAX_LINE_BYTES:,} bytes")
    if not content.strip():
        return None
    try:
        return InputLine(number, Line(number, content, START).json())
    except UnreadableLine as error:
        return InputLine(number, problem=str(error))
