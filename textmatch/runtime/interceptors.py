"""Interceptors around every call to our own services: request id, errors, metrics, limits, bad requests.

Health and reflection are not wrapped.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from textmatch.errors import InternalError, InvalidInput, Overloaded, TextMatchError
from textmatch.runtime import logs
from textmatch.runtime.channel import REQUEST_ID_METADATA_KEY
from textmatch.runtime.grpc_errors import status_code, to_status, trailing_metadata
from textmatch.runtime.metrics import RPC_SECONDS, RPC_TOTAL
from textmatch.runtime.request_limits import RequestLimits

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]  # generic in the stubs only
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]

_log = logging.getLogger(__name__)

_MAX_REQUEST_ID_CHARACTERS = 64
_BUSY_RETRY_SECONDS = 1.0


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps the handlers of our own services."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/textmatch."):
            return handler
        return self.wrap(handler, handler_call_details)

    @abstractmethod
    def wrap(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        """The handler that is called instead."""


def wrap_handler(
    handler: Any,
    *,
    around: Callable[[Context], AbstractAsyncContextManager[None]] = lambda _: nullcontext(),
    map_request: Callable[[Any], Any] | None = None,
    request_deserializer: Callable[[bytes], Any] | None = None,
) -> Handler:
    """A handler of the same arity: unary-unary, unary-stream or stream-stream.

    Args:
        around: entered before the call and left after its last response.
        map_request: applied to every request; raises TextMatchError to refuse it.
        request_deserializer: replaces that of `handler`.
    """
    codecs = {
        "request_deserializer": request_deserializer or handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }

    def mapped(request: Any) -> Any:
        if map_request is None:
            return request
        return _map_each(request, map_request) if handler.stream_stream else map_request(request)

    async def answer(request: Any, context: Context) -> Any:
        async with around(context):
            return await handler.unary_unary(mapped(request), context)

    async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
        respond = handler.unary_stream or handler.stream_stream
        async with around(context):
            async for response in respond(mapped(request), context):
                yield response

    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(answer, **codecs)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(answers, **codecs)
    return grpc.stream_stream_rpc_method_handler(answers, **codecs)


async def _map_each(requests: AsyncIterator[Any], map_request: Callable[[Any], Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield map_request(request)


class CallInterceptor(Interceptor):
    """Sets the request id, translates errors, counts calls and limits them. The outermost interceptor.

    Args:
        max_running: more calls at the same time are refused; streams count while they are open.
    """

    def __init__(self, max_running: int) -> None:
        self._max_running = max_running
        self._running = 0

    def wrap(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        service, _, method = details.method.lstrip("/").partition("/")

        @asynccontextmanager
        async def around(context: Context) -> AsyncIterator[None]:
            async with _observed_call(service, method, context):
                with self._counted():
                    yield

        return wrap_handler(handler, around=around)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._running >= self._max_running:
            message = f"the server runs {self._max_running:,} calls already"
            raise Overloaded(message, retry_delay_seconds=_BUSY_RETRY_SECONDS)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


@asynccontextmanager
async def _observed_call(service: str, method: str, context: Context) -> AsyncIterator[None]:
    started = time.perf_counter()
    logs.request_id.set(_request_id(context))
    code = grpc.StatusCode.OK
    try:
        yield
    except TextMatchError as error:
        status = to_status(error)
        code = status_code(status)
        await _abort(context, status)
    except (asyncio.CancelledError, GeneratorExit):
        code = grpc.StatusCode.CANCELLED
        raise
    except grpc.aio.AbortError:
        code = context.code()
        raise
    except Exception:  # noqa: BLE001 -- the caller gets INTERNAL for any bug, the log gets the trace
        code = grpc.StatusCode.INTERNAL
        _log.exception("%s/%s failed", service, method)
        message = f"internal error; request id {logs.request_id.get()}"
        await _abort(context, to_status(InternalError(message)))
    finally:
        RPC_SECONDS.labels(service, method).observe(time.perf_counter() - started)
        RPC_TOTAL.labels(service, method, code.name).inc()


async def _abort(context: Context, status: status_pb2.Status) -> NoReturn:
    await context.abort(status_code(status), status.message, trailing_metadata(status))
    raise AssertionError("abort() always raises")


def _request_id(context: Context) -> str:
    metadata = dict(context.invocation_metadata() or ())
    given = metadata.get(REQUEST_ID_METADATA_KEY, "")
    return str(given)[:_MAX_REQUEST_ID_CHARACTERS] or uuid.uuid4().hex[:16]


@dataclass(frozen=True)
class _Refused:
    """Stands for a request that is not parsed, until the interceptor that refuses it."""

    error: InvalidInput


_MALFORMED = _Refused(
    InvalidInput.of_field("request", "must be a protobuf message of the type that this method takes")
)


class RequestInterceptor(Interceptor):
    """Answers INVALID_ARGUMENT for requests that exceed limits or cannot be parsed.

    gRPC itself would answer UNKNOWN. Goes inside CallInterceptor.

    Args:
        limits: by method ("/textmatch.v1.MatcherService/Match").
    """

    def __init__(self, limits: Mapping[str, RequestLimits]) -> None:
        self._limits = limits
        # gRPC asks for the handler on every call, and it is nearly always the same object.
        self._wrapped = lru_cache(maxsize=64)(self._wrap)

    def wrap(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        return self._wrapped(handler, details.method)

    def _wrap(self, handler: Any, method: str) -> Handler:
        limits = self._limits.get(method)
        parse = (limits and limits.parse) or handler.request_deserializer

        def checked(data: bytes) -> Any:
            try:
                if limits:
                    limits.check(data)
                return parse(data)
            except DecodeError:
                return _MALFORMED
            except InvalidInput as error:
                return _Refused(error)

        return wrap_handler(handler, map_request=_check_parsed, request_deserializer=checked)


def _check_parsed(request: Any) -> Any:
    if isinstance(request, _Refused):
        raise request.error
    return request
