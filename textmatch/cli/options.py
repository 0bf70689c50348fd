"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Matcher = Annotated[str, typer.Option("--matcher", help="Address of the matcher, host:port.")]
Encoder = Annotated[str, typer.Option("--encoder", help="Address of the encoder, host:port.")]
QdrantUrl = Annotated[str, typer.Option("--qdrant-url", help="URL of Qdrant's gRPC port: http://host:6334.")]
RedisUrl = Annotated[str, typer.Option("--redis-url", help="URL of Redis: redis://host:6379/0.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of the local stack. Default: .textmatch, if a stack runs there."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
Where = Annotated[
    str,
    typer.Option(
        "--where", metavar="FILTER", help="Filter by attributes: 'module = \"os\" and year > 2020'."
    ),
]
