"""What an error of Qdrant means, by its code and by what Qdrant says.

| Qdrant says | error |
|---|---|
| UNAUTHENTICATED, PERMISSION_DENIED | StoreAccessDenied |
| INTERNAL "No space left on device", RESOURCE_EXHAUSTED without a delay | StoreFull |
| INVALID_ARGUMENT "Bad request: Limit exceeded" (strict mode) | RequestTooLarge |
| other INVALID_ARGUMENT of strict mode, FAILED_PRECONDITION | StoreMisconfigured |
| INVALID_ARGUMENT "Bad request: Index required" for an attribute | InvalidInput: the filter |
| any other INVALID_ARGUMENT | InvalidInput |
| RESOURCE_EXHAUSTED with `retry-after` | Overloaded |
| FAILED_PRECONDITION "No target shard" (the node does not know a new collection) | DependencyUnavailable |
| the following and this with "1 out of 3 shards failed to apply operation" | ReplicasMissing |
| UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL, ABORTED, CANCELLED, UNKNOWN | DependencyUnavailable |
| any other code | StoreMisconfigured |

The code alone does not decide: INTERNAL may be a full disk or an absent node, and INVALID_ARGUMENT a setting
of the server. In doubt the error is one that waits for an operator, never one that a document must pay for.
"""

from __future__ import annotations

import re

import grpc
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

from textmatch.errors import (
    DependencyUnavailable,
    InvalidInput,
    Overloaded,
    StoreAccessDenied,
    StoreFull,
    StoreMisconfigured,
    TextMatchError,
)

# An operator needs some time.
_OPERATOR_SECONDS = 5.0
_TRANSIENT_SECONDS = 1.0
_RATE_LIMIT_SECONDS = 5.0

_TRANSIENT_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_ACCESS_CODES = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_NO_SPACE = re.compile(r"No space left on device|exceeds available disk space|disk quota exceeded", re.I)
_STRICT_MODE = re.compile(r"Index required but not found|strict mode|Help: ", re.I)
_TOO_LARGE = re.compile(r"Limit exceeded|message larger than max", re.I)
_UNINDEXED_ATTRIBUTE = re.compile(r'Index required but not found for "attributes\.')
_NEW_COLLECTION = re.compile(r"No target shard|shards failed to apply operation")
# Of the error of a write that some shards applied and others did not.
_FAILED_SHARDS = re.compile(r"(\d+) out of (\d+) shards failed to apply operation")
_RATE_LIMIT = re.compile(r"rate limit", re.I)


class ReplicasMissing(DependencyUnavailable):
    """Too few replicas of some shards applied a write, and it must be sent again.

    The write stays on the replicas that applied it. The other shards have applied their part.
    """


class RequestTooLarge(StoreMisconfigured):
    """Strict mode, or a limit of gRPC, forbids a request of this size. A smaller one may be allowed."""


def translated_error(error: Exception) -> Exception:
    """The TextMatchError for an error of Qdrant's client.

    Returns:
        The error itself if it is not one of Qdrant's, or one that callers expect: NOT_FOUND, ALREADY_EXISTS.
    """
    if isinstance(error, ResourceExhaustedResponse):
        return Overloaded(f"Qdrant: {error}", retry_delay_seconds=float(error.retry_after_s))
    if not isinstance(error, grpc.aio.AioRpcError):
        return error
    code, details = error.code(), error.details() or ""
    if code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS}:
        return error
    return _refusal(code, details) or _misconfigured(f"Qdrant refuses a request ({code.name}): {details}")


def _refusal(code: grpc.StatusCode, details: str) -> TextMatchError | None:
    if code in _ACCESS_CODES:
        message = f"Qdrant refuses textmatch's own API key, TEXTMATCH_QDRANT_API_KEY: {details}"
        return StoreAccessDenied(message, retry_delay_seconds=_OPERATOR_SECONDS)
    if _NO_SPACE.search(details):
        message = f"Qdrant has no space left for writes: {details}"
        return StoreFull(message, retry_delay_seconds=_OPERATOR_SECONDS)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return _invalid(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE.search(details):
        return RequestTooLarge(f"a request is too large: {details}", retry_delay_seconds=_OPERATOR_SECONDS)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if _RATE_LIMIT.search(details):
            return Overloaded(f"Qdrant: {details}", retry_delay_seconds=_RATE_LIMIT_SECONDS)
        return StoreFull(f"Qdrant's quota is used up: {details}", retry_delay_seconds=_OPERATOR_SECONDS)
    is_new = code is grpc.StatusCode.FAILED_PRECONDITION and _NEW_COLLECTION.search(details)
    if is_new or code in _TRANSIENT_CODES:
        message = f"Qdrant does not answer: {details}"
        kind = ReplicasMissing if _is_partly_applied(details) else DependencyUnavailable
        return kind(message, retry_delay_seconds=_TRANSIENT_SECONDS)
    return None


def _is_partly_applied(details: str) -> bool:
    """Whether a write failed on some shards only."""
    shards = _FAILED_SHARDS.search(details)
    return shards is not None and int(shards[1]) < int(shards[2])


def _invalid(details: str) -> TextMatchError:
    if _UNINDEXED_ATTRIBUTE.search(details):
        return InvalidInput.of_field("filter", f"Qdrant's strict mode forbids it: {details}")
    if details.startswith("Bad request:") and _TOO_LARGE.search(details):
        message = f"Qdrant's strict mode forbids a request of this size: {details}"
        return RequestTooLarge(message, retry_delay_seconds=_OPERATOR_SECONDS)
    if details.startswith("Bad request:") and _STRICT_MODE.search(details):
        return _misconfigured(f"Qdrant's strict mode forbids a request: {details}")
    return InvalidInput.of_field("request", f"Qdrant rejects it: {details}")


def _misconfigured(message: str) -> StoreMisconfigured:
    return StoreMisconfigured(message, retry_delay_seconds=_OPERATOR_SECONDS)
