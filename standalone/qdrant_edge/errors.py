"""Failures as a real Qdrant server reports them: code and text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import grpc

_Result = TypeVar("_Result")

# The type cannot be imported: every extension built with PyO3 makes its own.
_PANIC = "PanicException"

# How the engine's own messages begin, by the status that the server gives them.
_NOT_FOUND_PREFIX = "No point with id"
_INVALID_PREFIXES = (
    "Vector dimension error",
    "Not existing vector name error",
    "Wrong usage of",
    "Validation failed",
    "No range index",
    "No appropriate index",
    "Payload type does not match",
    "Unable to infer type",
    "Expected ",
    "Conversion between",
)


class RequestError(Exception):
    """Ends a call with this code and these details."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def invalid(description: str) -> RequestError:
    """The request is invalid."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, f"Wrong input: {description}")


def strict(description: str) -> RequestError:
    """Strict mode forbids the request."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, f"Bad request: {description}")


def already_exists(description: str) -> RequestError:
    """The name is taken."""
    return RequestError(grpc.StatusCode.ALREADY_EXISTS, f"Wrong input: {description}")


def not_found(description: str) -> RequestError:
    """Something that the request names does not exist."""
    return RequestError(grpc.StatusCode.NOT_FOUND, f"Not found: {description}")


def unsupported(part: str) -> RequestError:
    """A part of the API that this server does not support."""
    return RequestError(grpc.StatusCode.UNIMPLEMENTED, f"{part} is not available in Qdrant Edge")


def internal(description: str) -> RequestError:
    """The server failed; the request may be valid."""
    return RequestError(grpc.StatusCode.INTERNAL, f"Service internal error: {description}")


def as_request_error(error: Exception) -> RequestError:
    """The status of any failure; INTERNAL unless the request caused it."""
    if isinstance(error, RequestError):
        return error
    description = str(error)
    if isinstance(error, (ValueError, OverflowError, TypeError)) or description.startswith(_INVALID_PREFIXES):
        return invalid(description)
    if description.startswith(_NOT_FOUND_PREFIX):
        return not_found(description)
    return internal(description)


def engine_call(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call the engine; a panic in it, which Python sees as a BaseException, becomes an INTERNAL failure."""
    try:
        return function(*arguments)
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise internal(f"the engine panicked: {error}") from error
