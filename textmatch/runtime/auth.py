"""Who may call what: an interceptor that asks every call to our own services for an API key.

Health and reflection stay open, for probes and tools: they tell nothing but names of services.

API keys: who may call, what each may do, and how much; from a file that may change while we run.

    # name     scopes       key or sha256:HEX of it       tokens per second, if limited
    search-ui  read         sha256:9f86d081884c7d65…      5000
    indexer    read,write   kR3vN0qzXw7Yt5LbH2cM9dFs
    operator   admin        sha256:60303ae22b998861…

A name may have several lines with several keys: that is how a key is replaced without a gap.

How many tokens each API key may send; counted in this process alone.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import grpc

from textmatch.errors import (
    ApiKeyInvalid,
    ApiKeyMissing,
    InvalidInput,
    Overloaded,
    PermissionDenied,
    TextMatchError,
)
from textmatch.runtime import logs

_log = logging.getLogger(__name__)

_VARIABLE = "TEXTMATCH_API_KEYS_FILE"
_SHA256_PREFIX = "sha256:"
_MIN_KEY_CHARACTERS = 16
_CHECK_SECONDS = 1.0

Signature = tuple[int, int, int]


class Scope(Enum):
    """What a key may be allowed to do; admin may do everything."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True)
class ApiKey:
    """One line of the file. The key itself is not kept.

    Args:
        digest: SHA-256 of the key.
        tokens_per_second: None: as many as it likes.
    """

    name: str
    scopes: frozenset[Scope]
    digest: bytes
    tokens_per_second: float | None = None

    def allows(self, scope: Scope) -> bool:
        """Whether the key may do what needs this scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


class ApiKeys:
    """The keys of a file. It is read again when it changes; a broken one is logged and changes nothing.

    Raises:
        InvalidInput: the file cannot be read, or a line of it is wrong.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._signature = _signature(path)
        self._keys = parse(_read(path))
        self._checked_at = clock()

    def find(self, presented: str) -> ApiKey:
        """The key that was presented. Takes the same time whichever it is, and if it is none.

        Raises:
            ApiKeyInvalid: it is none of them.
        """
        self._read_again_if_changed()
        digest = hashlib.sha256(presented.encode(errors="surrogateescape")).digest()
        found: ApiKey | None = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise ApiKeyInvalid("the API key is not valid")
        return found

    def _read_again_if_changed(self) -> None:
        now = self._clock()
        if now - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = now
        signature = _signature(self._path)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = parse(_read(self._path))
        except InvalidInput as error:
            _log.error("the API keys stay as they were", extra={"error": str(error)})
        else:
            _log.info("API keys read again", extra={"keys": sorted({key.name for key in self._keys})})


def parse(text: str) -> tuple[ApiKey, ...]:
    """The keys in such a file.

    Raises:
        InvalidInput: naming a bad line by its number and never by what it holds.
    """
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            keys.append(_parse_line(words))
        except ValueError as error:
            raise InvalidInput.of_field(_VARIABLE, f"line {number}: {error}") from None
    if not keys:
        raise InvalidInput.of_field(_VARIABLE, "the file has no keys; without keys nobody could call")
    return tuple(keys)


def _parse_line(words: list[str]) -> ApiKey:
    if len(words) not in (3, 4):
        raise ValueError("it must be: name, scopes, key or sha256:HEX, and tokens per second if limited")
    name, scopes, secret, *limit = words
    return ApiKey(name, _parse_scopes(scopes), _parse_secret(secret), _parse_limit(*limit))


def _parse_scopes(text: str) -> frozenset[Scope]:
    known = [scope.value for scope in Scope]
    if any(word not in known for word in text.split(",")):
        raise ValueError(f"the scopes must be of {', '.join(known)}, with commas and no spaces between them")
    return frozenset(map(Scope, text.split(",")))


def _parse_secret(text: str) -> bytes:
    if not text.startswith(_SHA256_PREFIX):
        if len(text) < _MIN_KEY_CHARACTERS:
            raise ValueError(f"the key is shorter than {_MIN_KEY_CHARACTERS} characters")
        return hashlib.sha256(text.encode()).digest()
    try:
        digest = bytes.fromhex(text.removeprefix(_SHA256_PREFIX))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError("behind sha256: there must be 64 hexadecimal digits")
    return digest


def _parse_limit(text: str = "") -> float | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("the tokens per second must be a whole number above 0")
    return float(text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInput.of_field(_VARIABLE, f"{path} cannot be read: {reason}") from None


def _signature(path: Path) -> Signature | None:
    """Changes whenever the file does, also when a link to it is turned; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


_BYTES_PER_TOKEN = 4
_BURST_SECONDS = 10.0


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class RateLimits:
    """Lets a request in while anything is left of ten seconds' allowance; what it takes beyond that is owed.

    So a request of any size gets in, and on average nobody gets more than the allowance. Keys of the same
    name share one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def charge(self, key: ApiKey, size_bytes: int) -> None:
        """Take what a request costs: a token for four bytes.

        Raises:
            Overloaded: nothing is left, with the time until something is.
        """
        rate = key.tokens_per_second
        if rate is None:
            return
        now = self._clock()
        bucket = self._buckets.setdefault(key.name, _Bucket(rate * _BURST_SECONDS, now))
        refilled = bucket.tokens + (now - bucket.filled_at) * rate
        bucket.tokens, bucket.filled_at = min(refilled, rate * _BURST_SECONDS), now
        if bucket.tokens <= 0:
            message = f"the API key {key.name} has used up its {rate:,.0f} tokens per second"
            raise Overloaded(message, retry_delay_seconds=(1 - bucket.tokens) / rate)
        bucket.tokens -= 1 + size_bytes / _BYTES_PER_TOKEN


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
