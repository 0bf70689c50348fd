"""What holds for every request: its id, limits, metrics, and its end when the caller goes away.

The outermost ASGI application; FastAPI is inside.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.metrics import REQUEST_SECONDS, REQUESTS_TOTAL, RUNNING_REQUESTS
from services.gateway.problems import http_problem_response, internal_problem_response, problem_response
from textmatch.errors import Overloaded
from textmatch.runtime import logs

_log = logging.getLogger(__name__)

_BODY_SCOPE_KEY = "textmatch.body"
_REQUEST_ID_HEADER = "x-request-id"
_REQUEST_ID = re.compile(r"[!-~]{1,64}")
# A caller that sends nothing for this time is taken to be gone.
_IDLE_SECONDS = 120.0
_DISCARD_SECONDS = 2.0
_CALLER_LEFT = 499
_UNKNOWN_ROUTE = "none"
_REFUSED_RETRY_SECONDS = 1.0


@dataclass
class BodyMeter:
    """How much of a body was read, and how much may be."""

    max_bytes: int | None
    read_bytes: int = 0
    is_complete: bool = False

    def add(self, message: Message) -> None:
        """Count a part.

        Raises:
            HTTPException: 413, the limit is exceeded.
        """
        self.read_bytes += len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        if self.max_bytes is not None and self.read_bytes > self.max_bytes:
            raise too_large(self.max_bytes)


def without_body_limit(scope: Scope) -> None:
    """Let the body of this request have any size; for routes that read it as a stream."""
    scope[_BODY_SCOPE_KEY].max_bytes = None


def too_large(max_bytes: int) -> HTTPException:
    """The error for a body that is larger than the limit."""
    return HTTPException(413, f"the body is larger than {max_bytes:,} bytes")


class Boundary:
    """The application around another one.

    Args:
        max_body_bytes: of requests that do not stream.
        max_requests: at the same time; further ones are refused.
        is_local: it listens on loopback. Names other than `localhost` are refused as host: a page whose name
            is made to lead here could read everything.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_requests: int, *, is_local: bool) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_requests = max_requests
        self._is_local = is_local
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _RunningRequest(scope, receive, send, self._max_body_bytes)
        self._running += 1
        RUNNING_REQUESTS.set(self._running)
        try:
            if self._running > self._max_requests:
                await request.refuse(self._max_requests)
            elif self._is_local and not _names_this_machine(Headers(scope=scope).get("host", "")):
                await request.misdirected()
            else:
                await request.run(self._app)
        finally:
            self._running -= 1
            RUNNING_REQUESTS.set(self._running)
            request.observe()


class _RunningRequest:
    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.perf_counter()
        self._body = BodyMeter(max_body_bytes)
        scope[_BODY_SCOPE_KEY] = self._body
        headers = Headers(scope=scope)
        self._length = int(length) if (length := headers.get("content-length", "0")).isdecimal() else 0
        self._has_body = self._length > 0 or "transfer-encoding" in headers
        self._request_id = _request_id(headers.get(_REQUEST_ID_HEADER, ""))
        logs.request_id.set(self._request_id)
        self._status = 0
        self._is_answered = False
        self._left_early = False
        self._caller_left = asyncio.Event()
        self._task: asyncio.Task[object] | None = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None

    async def refuse(self, max_requests: int) -> None:
        """Answer that there are too many requests."""
        error = Overloaded(
            f"the gateway answers {max_requests:,} requests already",
            retry_delay_seconds=_REFUSED_RETRY_SECONDS,
        )
        await problem_response(error)(self._scope, self.receive, self.send)

    async def misdirected(self) -> None:
        """Answer that the host of the request is another one."""
        detail = "the gateway listens on loopback; call it by localhost or an IP address"
        await http_problem_response(421, detail)(self._scope, self.receive, self.send)

    async def run(self, app: ASGIApp) -> None:
        """Answer the request. It ends when the caller closes the connection."""
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self._caller_left.is_set() or self._task is None:
                raise
            self._task.uncancel()
        except ClientDisconnect:
            # The route was reading the body. Nobody is there to be answered.
            self._left_early = True
        except Exception:
            _log.exception("%s %s failed", self._scope["method"], self._scope["path"])
            if self._status:
                raise
            await internal_problem_response()(self._scope, self.receive, self.send)
        finally:
            if self._watch is not None:
                self._watch.cancel()

    def observe(self) -> None:
        """Add the request to the metrics."""
        method = self._scope["method"]
        route = getattr(self._scope.get("route"), "path", _UNKNOWN_ROUTE)
        status = _CALLER_LEFT if self._left_early else self._status
        REQUEST_SECONDS.labels(method, route).observe(time.perf_counter() - self._started)
        REQUESTS_TOTAL.labels(method, route, str(status)).inc()

    async def receive(self) -> Message:
        """The next part of the body; after the last one, waits for the end of the connection."""
        if self._body.is_complete:
            await self._caller_left.wait()
            return {"type": "http.disconnect"}
        if (limit := self._body.max_bytes) is not None and self._length > limit:
            raise too_large(limit)
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"nothing was sent for {_IDLE_SECONDS:g} seconds") from None
        if message["type"] == "http.request":
            self._body.add(message)
        else:
            self._body.is_complete = True
            self._leave()
        if self._body.is_complete:
            self._watch = asyncio.ensure_future(self._end_when_caller_leaves())
        return message

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[_REQUEST_ID_HEADER] = self._request_id
            headers["x-content-type-options"] = "nosniff"
            if self._has_body and not self._body.is_complete and self._status >= 400:
                await self._discard_body()
                if not self._body.is_complete:
                    headers["connection"] = "close"
        elif not message.get("more_body", False):
            self._is_answered = True
        await self._send(message)

    async def _discard_body(self) -> None:
        """Read the rest of a refused body for a while: a connection closed earlier loses the answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while not self._body.is_complete:
                    message = await self._receive()
                    self._body.is_complete = not message.get("more_body", False)

    async def _end_when_caller_leaves(self) -> None:
        await self._receive()
        self._leave()
        if self._left_early and self._task is not None:
            self._task.cancel()

    def _leave(self) -> None:
        self._left_early = self._left_early or not self._is_answered
        self._caller_left.set()


def _names_this_machine(host: str) -> bool:
    """Whether a `Host` is an IP address or localhost; no name that somebody could have chosen."""
    try:
        name = urlsplit(f"//{host}").hostname or "localhost"
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


def _request_id(given: str) -> str:
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:16]
