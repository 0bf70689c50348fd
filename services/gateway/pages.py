"""The pages: the console at `/`, and the OpenAPI document as plain HTML at `/docs`.

They load nothing from other hosts. The console has no rights of its own: its script calls the routes with the
key that a person types, and keeps the key in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

_CONSOLE = Path(__file__).with_name("console")
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Only own scripts and styles run, and no script can turn text into HTML.
_CONSOLE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_DOCS_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; overflow-wrap: anywhere; }
summary { cursor: pointer; }
details { margin: 0.3rem 0; }
details > :not(summary) { margin-left: 1.2rem; }
pre { overflow-x: auto; }
"""


def console_routes() -> list[Route]:
    """The routes of the console: its page at `/`, scripts and styles at `/console/NAME`."""
    files = sorted(file for file in _CONSOLE.iterdir() if file.suffix in _MEDIA_TYPES)
    return [Route(_console_path(file), _console_file(file), methods=["GET"]) for file in files]


def docs_page(document: Callable[[], dict[str, Any]]) -> Callable[[Request], Any]:
    """The handler of the page.

    Args:
        document: makes the OpenAPI document.
    """

    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse(render(document()), headers=_DOCS_HEADERS)

    return page


def _console_path(file: Path) -> str:
    return "/" if file.name == "index.html" else f"/console/{file.name}"


def _console_file(file: Path) -> Callable[[Request], Any]:
    content, media_type = file.read_bytes(), _MEDIA_TYPES[file.suffix]

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_CONSOLE_HEADERS)

    return answer


def render(document: dict[str, Any]) -> str:
    """The whole page."""
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main><h1>{title}</h1>",
        *(f"<p>{escape(paragraph)}</p>" for paragraph in info["description"].split("\n\n")),
        '<p><a href="/openapi.json">openapi.json</a></p>',
    ]
    for tag, operations in _by_tag(document).items():
        parts += [f"<h2>{escape(tag)}</h2>", *operations]
    parts.append("<h2>Schemas</h2>")
    parts += map(_schema, sorted(document["components"]["schemas"].items()))
    return "".join([*parts, "</main></body></html>"])


def _by_tag(document: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            text = "".join(_operation(method, path, operation))
            found.setdefault(operation["tags"][0], []).append(text)
    return found


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<details><summary><code>{method.upper()} {escape(path)}</code> "
    yield f"{escape(operation.get('description', ''))}</summary><ul>"
    for one in operation.get("parameters", []):
        about = escape(one.get("description", ""))
        yield f"<li><code>{escape(one['name'])}</code> ({one['in']}) {about}</li>"
    if body := operation.get("requestBody"):
        yield f"<li>body: {_content(body)}</li>"
    for status, answer in operation["responses"].items():
        yield f"<li>{escape(status)}: {escape(answer['description'])} {_content(answer)}</li>"
    yield "</ul></details>"


def _content(holder: dict[str, Any]) -> str:
    """The media types, with links to their schemas."""
    shown = []
    for media_type, content in holder.get("content", {}).items():
        schema = content.get("x-item-schema") or content.get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        link = f' <a href="#{escape(name)}">{escape(name)}</a>' if name else ""
        shown.append(f"<code>{escape(media_type)}</code>{link}")
    return ", ".join(shown)


def _schema(item: tuple[str, dict[str, Any]]) -> str:
    name, text = escape(item[0]), escape(json.dumps(item[1], indent=2, ensure_ascii=False))
    return f'<details id="{name}"><summary><code>{name}</code></summary><pre>{text}</pre></details>'
