"""The HTTP application: all routes, the OpenAPI document, and the pages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from services.gateway import collections, dead_letters, documents, duplicates, embeddings, rerank
from services.gateway.boundary import Boundary
from services.gateway.caller import Gateway
from services.gateway.collections import BatchMatchLine
from services.gateway.dead_letters import DeadLetterLine
from services.gateway.documents import DocumentLine
from services.gateway.duplicates import DuplicatesLine
from services.gateway.pages import console_routes, docs_page
from services.gateway.problems import MEDIA_TYPE, ProblemDetails, exception_handlers

_DESCRIPTION = """Finds the stored texts that mean the same as a query, with a score from 0 to 1.

Errors are problem details (RFC 9457). `Request-Timeout` is the time limit of a request in seconds.
`X-Request-Id` is in the logs of all servers."""
_REF = {"$ref": "#/components/schemas/ProblemDetails"}
_RETRY_AFTER = {
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds until a retry may succeed."}
}
# Models that no signature of a route has.
_STREAMED = (ProblemDetails, DocumentLine, DeadLetterLine, BatchMatchLine, DuplicatesLine)


def _problem(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": _REF}}
    return {"description": description, "content": content, "headers": headers or {}}


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    429: _problem("Too much work is queued, or the rate limit of the key is used up.", _RETRY_AFTER),
    503: _problem("A server does not answer, or is starting.", _RETRY_AFTER),
    504: _problem("The time limit passed."),
    "4XX": _problem("The request cannot be answered; `reason` and `items` say why."),
}


def create_app(
    gateway: Gateway,
    *,
    max_body_bytes: int,
    max_requests: int,
    cors_origins: Sequence[str] = (),
    is_local: bool = False,
    has_console: bool = True,
) -> ASGIApp:
    """The application as a server runs it.

    Args:
        max_body_bytes: of requests that do not stream.
        max_requests: at the same time.
        cors_origins: whose pages may call it; "*" means all.
        is_local: it listens on loopback.
        has_console: whether `/` is the console.
    """
    app = FastAPI(
        title="textmatch",
        version=version("textmatch"),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_PROBLEMS,
        exception_handlers=exception_handlers(),
        # Spans only: metrics and logs are our own.
        telemetry={"metrics": False, "logs": False, "operation_spans": False, "auto_configure": False},
    )
    app.state.gateway = gateway
    for module in (collections, documents, duplicates, dead_letters, embeddings, rerank):
        app.include_router(module.router)
    _add_streamed_models(app)
    app.add_route("/docs", docs_page(app.openapi), methods=["GET"])
    if has_console:
        app.router.routes.extend(console_routes())
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["authorization", "content-type", "request-timeout", "x-request-id"],
            expose_headers=["retry-after", "x-request-id"],
        )
    return Boundary(app, max_body_bytes, max_requests, is_local=is_local)


def _add_streamed_models(app: FastAPI) -> None:
    """Describe models that are in no signature of a route."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in _STREAMED:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            for name, definition in schema.pop("$defs", {}).items():
                schemas.setdefault(name, definition)
            schemas.setdefault(model.__name__, schema)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
