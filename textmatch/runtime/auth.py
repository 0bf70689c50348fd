"""Who may call what: an interceptor that asks every call to our own services for an API key.

Health and reflection stay open, for probes and tools: they tell nothing but names of services.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc

from textmatch.errors import ApiKeyMissing, PermissionDenied, TextMatchError
from textmatch.runtime import logs
from textmatch.runtime.api_keys import ApiKey, ApiKeys, Scope
from textmatch.runtime.rate_limits import RateLimits

_log = logging.getLogger(__name__)

AUTHORIZATION_METADATA_KEY = "authorization"
_SCHEME = "bearer "

# What is not named here needs the scope admin.
SCOPES: Mapping[str, Scope] = {
    "/textmatch.v1.EncoderService/Encode": Scope.READ,
    "/textmatch.v1.EncoderService/EncodeStream": Scope.READ,
    "/textmatch.v1.EncoderService/Score": Scope.READ,
    "/textmatch.v1.EncoderService/GetModels": Scope.READ,
    "/textmatch.v1.MatcherService/Match": Scope.READ,
    "/textmatch.v1.MatcherService/BatchMatch": Scope.READ,
    "/textmatch.v1.MatcherService/GetDocument": Scope.READ,
    "/textmatch.v1.MatcherService/GetIngestStatus": Scope.READ,
    "/textmatch.v1.MatcherService/IngestDocuments": Scope.WRITE,
    # By ids. By a filter it needs admin: one call can empty the index.
    "/textmatch.v1.MatcherService/DeleteDocuments": Scope.WRITE,
}


class AuthInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses before the request is read; goes inside the interceptor that translates our errors."""

    def __init__(self, keys: ApiKeys, limits: RateLimits) -> None:
        self._keys = keys
        self._limits = limits

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/textmatch."):
            return handler
        try:
            key = self._keys.find(_presented(handler_call_details.invocation_metadata))
            _require(key, SCOPES.get(method, Scope.ADMIN), method)
        except TextMatchError as error:
            return _refusal(error)
        return _Guard(key, method, self._limits).around(handler)


class _Guard:
    """One call by one key."""

    def __init__(self, key: ApiKey, method: str, limits: RateLimits) -> None:
        self._key = key
        self._method = method
        self._limits = limits

    def admit(self, request: Any) -> Any:
        """The request, if the key may send it now."""
        if _deletes_by_filter(request):
            _require(self._key, Scope.ADMIN, self._method)
        self._limits.charge(self._key, _size_bytes(request))
        return request

    async def admit_each(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The requests of a stream."""
        async for request in requests:
            yield self.admit(request)

    def around(self, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler that admits before it does as this one."""
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }

        async def answer(request: Any, context: Any) -> Any:
            logs.api_key_name.set(self._key.name)
            return await handler.unary_unary(self.admit(request), context)

        async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
            logs.api_key_name.set(self._key.name)
            if handler.unary_stream:
                responses = handler.unary_stream(self.admit(request), context)
            else:
                responses = handler.stream_stream(self.admit_each(request), context)
            async for response in responses:
                yield response

        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(answer, **codecs)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(answers, **codecs)
        return grpc.stream_stream_rpc_method_handler(answers, **codecs)


def _presented(metadata: Any) -> str:
    for name, value in metadata or ():
        if (
            name == AUTHORIZATION_METADATA_KEY
            and isinstance(value, str)
            and value.lower().startswith(_SCHEME)
        ):
            return value[len(_SCHEME) :].strip()
    raise ApiKeyMissing("an API key is needed, as metadata: authorization: Bearer KEY")


def _require(key: ApiKey, scope: Scope, method: str) -> None:
    if key.allows(scope):
        return
    _log.warning("scope missing", extra={"key": key.name, "method": method, "scope": scope.value})
    raise PermissionDenied(f"the API key {key.name} lacks the scope {scope.value}")


def _deletes_by_filter(request: Any) -> bool:
    return request.DESCRIPTOR.name == "DeleteDocumentsRequest" and bool(request.HasField("filter"))


def _size_bytes(request: Any) -> int:
    """Of what a model or the index has to work through; embeddings are neither."""
    return int(request.ByteSize()) - len(getattr(request, "embeddings", b""))


def _refusal(error: TextMatchError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that reads no request, whatever the kind of the method."""

    async def refuse(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        raise error
        yield

    return grpc.stream_stream_rpc_method_handler(refuse)
