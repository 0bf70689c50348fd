"""What happens around every call: request id, error translation, metrics. In that order, outermost first.

Requests that are no protobuf of their type: the caller's fault, which gRPC itself would call UNKNOWN.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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


_log = logging.getLogger(__name__)

REQUEST_ID_METADATA_KEY = "x-request-id"
_MAX_REQUEST_ID_CHARACTERS = 64


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps every handler of our own services; health and reflection pass through untouched."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        if handler is None or not service.startswith("textmatch."):
            return handler
        return _wrap(handler, service, method)


def _wrap(handler: Any, service: str, method: str) -> grpc.RpcMethodHandler[Any, Any]:
    codecs = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary:

        async def answer(request: Any, context: Context) -> Any:
            async with _around(service, method, context):
                return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, **codecs)

    inner = handler.unary_stream or handler.stream_stream
    make_handler = (
        grpc.unary_stream_rpc_method_handler
        if handler.unary_stream
        else grpc.stream_stream_rpc_method_handler
    )

    async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
        async with _around(service, method, context):
            async for response in inner(request, context):
                yield response

    return make_handler(answers, **codecs)


@asynccontextmanager
async def _around(service: str, method: str, context: Context) -> AsyncIterator[None]:
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
    except Exception:  # noqa: BLE001 -- whatever it is, the caller gets INTERNAL and the log gets the trace
        code = grpc.StatusCode.INTERNAL
        _log.exception("%s/%s failed", service, method)
        told = InternalError(f"internal error; request id {logs.request_id.get()}")
        await _abort(context, to_status(told))
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


class _Malformed:
    """Stands for a request that cannot be parsed."""


_MALFORMED = _Malformed()


class MalformedInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Answers INVALID_ARGUMENT; goes inside the interceptor that translates our errors."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        is_ours = handler_call_details.method.startswith("/textmatch.")
        return _checked(handler) if handler is not None and is_ours else handler


# Every call asks for its handler anew, and it is nearly always the same.
@lru_cache(maxsize=64)
def _checked(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    def parse(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            return _MALFORMED

    codecs = {"request_deserializer": parse, "response_serializer": handler.response_serializer}

    async def answer(request: Any, context: Any) -> Any:
        return await handler.unary_unary(_parsed(request), context)

    async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
        if handler.unary_stream:
            responses = handler.unary_stream(_parsed(request), context)
        else:
            responses = handler.stream_stream(_each_parsed(request), context)
        async for response in responses:
            yield response

    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(answer, **codecs)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(answers, **codecs)
    return grpc.stream_stream_rpc_method_handler(answers, **codecs)


def _parsed(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise InvalidInput.of_field("request", "is no protobuf message of the type that this method takes")
    return request


async def _each_parsed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _parsed(request)
