"""Errors as problem details (RFC 9457), with the reasons and items that gRPC callers get.

    HTTP/1.1 429 Too Many Requests
    Content-Type: application/problem+json
    Retry-After: 3

    {"type": "tag:textmatch.dev,2026:OVERLOADED", "title": "Too Many Requests", "status": 429,
     "detail": "...", "reason": "OVERLOADED", "retry_after_seconds": 2.4, "request_id": "5f3a9c1e",
     "error": {"message": "...", "type": "OVERLOADED", "param": null, "code": "OVERLOADED"}}

`error` is what the clients of OpenAI read. Those of text-embeddings-inference expect a string in it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from google.rpc import code_pb2
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from textmatch.errors import InternalError, InvalidInput, TextMatchError, Violation, reason_name
from textmatch.runtime import logs

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_ADDRESS = re.compile(r"^the (\w+) at \S+ ")
_TYPE_PREFIX = "tag:textmatch.dev,2026:"
_STATUS_OF_CODE = {
    code_pb2.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    code_pb2.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    code_pb2.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    code_pb2.NOT_FOUND: HTTPStatus.NOT_FOUND,
    code_pb2.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    # The request is right; the state of the collection is not.
    code_pb2.FAILED_PRECONDITION: HTTPStatus.CONFLICT,
    code_pb2.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    code_pb2.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    code_pb2.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    code_pb2.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}
# Routes of text-embeddings-inference.
_STRING_ERRORS = ("/embed", "/rerank", "/info", "/health")
# Parts of the place of a value that name where pydantic looked, not what the caller sent.
_NOT_PLACES = ("body", "query", "path", "header")


class ProblemItem(BaseModel):
    """One bad item of a request."""

    field: str = Field(examples=["input[3]"])
    reason: str = Field(examples=["TEXT_EMPTY"])
    description: str


class ItemError(BaseModel):
    """Why one of many items failed."""

    reason: str = Field(examples=["OVERLOADED"], description="A name of `ErrorReason`; new ones may appear.")
    detail: str
    retry_after_seconds: float | None = None
    items: list[ProblemItem] | None = None


class OpenAiError(BaseModel):
    """What the clients of OpenAI read."""

    message: str
    type: str
    param: str | None = None
    code: str


class ProblemDetails(BaseModel):
    """Why a request failed (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    reason: str | None = None
    retry_after_seconds: float | None = None
    items: list[ProblemItem] | None = None
    metadata: dict[str, str] | None = None
    error: OpenAiError | str


def item_error(error: TextMatchError) -> ItemError:
    """The error of one item."""
    return ItemError(
        reason=reason_name(error.reason),
        detail=_shown(error),
        retry_after_seconds=error.retry_delay_seconds,
        items=_items(error),
    )


def problem_response(error: TextMatchError, path: str = "") -> Response:
    """The answer to a request that failed.

    Args:
        path: of the request.
    """
    status = _STATUS_OF_CODE.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    reason, detail, items = reason_name(error.reason), _shown(error), _items(error)
    problem = ProblemDetails(
        type=_TYPE_PREFIX + reason,
        title=status.phrase,
        status=status,
        detail=detail,
        request_id=logs.request_id.get(),
        reason=reason,
        retry_after_seconds=error.retry_delay_seconds,
        items=items,
        metadata=error.metadata or None,
        error=_error_member(path, detail, reason, items[0].field if items else None),
    )
    headers = {}
    if error.retry_delay_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_delay_seconds)))
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(problem, headers)


def http_problem_response(
    status: int, detail: str = "", headers: Mapping[str, str] | None = None, path: str = ""
) -> Response:
    """The answer to a request that no server of textmatch has seen: an unknown path, too large a body."""
    title = HTTPStatus(status).phrase
    code = title.upper().replace(" ", "_")
    problem = ProblemDetails(
        title=title,
        status=status,
        detail=detail or title,
        request_id=logs.request_id.get(),
        error=_error_member(path, detail or title, code, None),
    )
    return _response(problem, headers or {})


def exception_handlers() -> dict[
    int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]
]:
    """What FastAPI answers for each kind of exception."""
    return {
        TextMatchError: _on_text_match_error,
        RequestValidationError: _on_invalid_request,
        HTTPException: _on_http_exception,
    }


def internal_problem_response() -> Response:
    """The answer after a bug; the log has the details under the request id."""
    return problem_response(InternalError(f"internal error; request id {logs.request_id.get()}"))


@contextmanager
def renamed_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Name bad items as the caller does: the server's "texts[3]" is "input[3]" of OpenAI."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput([_renamed(violation, names) for violation in error.violations]) from error


def _renamed(violation: Violation, names: Mapping[str, str]) -> Violation:
    for name, replacement in names.items():
        rest = violation.field.removeprefix(name)
        if rest != violation.field and (not rest or rest[0] in "[."):
            return replace(violation, field=replacement + rest)
    return violation


async def _on_text_match_error(request: Request, error: TextMatchError) -> Response:
    return problem_response(error, request.url.path)


async def _on_invalid_request(request: Request, error: RequestValidationError) -> Response:
    return problem_response(InvalidInput([_violation(one) for one in error.errors()]), request.url.path)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    return http_problem_response(error.status_code, error.detail, error.headers, request.url.path)


def _violation(error: Mapping[str, Any]) -> Violation:
    place: Sequence[str | int] = error["loc"]
    if error["type"] == "json_invalid":
        return Violation.of_field("body", f"is not JSON: {error['ctx']['error']} at character {place[-1]}")
    return Violation.of_field(_field(place), _description(error["type"], error["msg"]))


def _description(kind: str, message: str) -> str:
    """What pydantic says, as our own checks would."""
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is unknown"
        case "value_error":
            return message.removeprefix("Value error, ")
    return message.replace("Input should", "must", 1)


def _field(place: Sequence[str | int]) -> str:
    """`("body", "input", 3)` -> `input[3]`."""
    parts = place[1:] if place and place[0] in _NOT_PLACES else place
    name = ""
    for part in parts:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    return name.lstrip(".") or "body"


def _items(error: TextMatchError) -> list[ProblemItem] | None:
    if not isinstance(error, InvalidInput):
        return None
    return [
        ProblemItem(field=one.field, reason=reason_name(one.reason), description=one.description)
        for one in error.violations
    ]


def _shown(error: TextMatchError) -> str:
    """The message, without the address of the server behind the gateway."""
    return _ADDRESS.sub(r"the \1 ", str(error))


def _error_member(path: str, detail: str, code: str, param: str | None) -> OpenAiError | str:
    if path in _STRING_ERRORS:
        return detail
    return OpenAiError(message=detail, type=code, param=param, code=code)


def _response(problem: ProblemDetails, headers: Mapping[str, str]) -> Response:
    content = problem.model_dump_json(exclude_none=True)
    return Response(content, status_code=problem.status, headers=dict(headers), media_type=MEDIA_TYPE)
