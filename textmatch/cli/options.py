"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Matcher = Annotated[str, typer.Option("--matcher", help="Address of the matcher, host:port.")]
Encoder = Annotated[str, typer.Option("--encoder", help="Address of the encoder, host:port.")]
QdrantUrl = Annotated[str, typer.Option("--qdrant-url", help="Qdrant's gRPC port, as http://host:6334.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Folder of the stack to use; the default is .textmatch, if one runs there."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
