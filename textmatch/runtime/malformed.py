"""Requests that are no protobuf of their type: the caller's fault, which gRPC itself would call UNKNOWN."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from textmatch.errors import InvalidInput


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
