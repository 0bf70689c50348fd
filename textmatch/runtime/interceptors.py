"""Interceptors around every call to our own services: request id, errors, metrics, malformed requests.

Health and reflection are not wrapped.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from textmatch.errors import InternalError, InvalidInput, TextMatchError
from textmatch.runtime import logs
from textmatch.runtime.grpc_errors import status_code, to_status, trailing_metadata
from textmatch.runtime.metrics import RPC_SECONDS, RPC_TOTAL

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]  # generic in the stubs only
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]

_log = logging.getLogger(__name__)

REQUEST_ID_METADATA_KEY = "x-request-id"
_MAX_REQUEST_ID_CHARACTERS = 64
# Stands for a request that cannot be parsed, until the interceptor that refuses it.
_MALFORMED = object()


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
    """Sets the request id, translates errors and counts calls. The outermost interceptor."""

    def wrap(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        service, _, method = details.method.lstrip("/").partition("/")
        return wrap_handler(handler, around=lambda context: _observed_call(service, method, context))


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


class MalformedInterceptor(Interceptor):
    """Answers INVALID_ARGUMENT for bytes that cannot be parsed; gRPC itself would answer UNKNOWN.

    Goes inside CallInterceptor.
    """

    def wrap(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        return _refusing_malformed(handler)


# gRPC asks for the handler on every call, and it is nearly always the same object.
@lru_cache(maxsize=64)
def _refusing_malformed(handler: Any) -> Handler:
    def parse(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            return _MALFORMED

    return wrap_handler(handler, map_request=_check_parsed, request_deserializer=parse)


def _check_parsed(request: Any) -> Any:
    if request is _MALFORMED:
        description = "must be a protobuf message of the type that this method takes"
        raise InvalidInput.of_field("request", description)
    return request
