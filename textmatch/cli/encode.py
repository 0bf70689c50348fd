"""`textmatch encode`: turn texts into embeddings."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.connection import find_addresses
from textmatch.client import EncodeResult, Role
from textmatch.console import cell, print_json, print_line, print_table

Texts = Annotated[list[str], typer.Argument(metavar="TEXT...", help="The texts, each in quotes.")]
RoleOption = Annotated[Role, typer.Option("--role", help="What the texts are used for.")]
Model = Annotated[str, typer.Option("--model", help="Name or model id of a loaded bi-encoder.")]

_SHOWN_COMPONENTS = 4


def encode(
    texts: Texts,
    role: RoleOption = Role.DOCUMENT,
    model: Model = "",
    as_json: options.Json = False,
    encoder: options.Encoder = "",
    data_dir: options.DataDir = None,
) -> None:
    """Turn texts into embeddings of length 1.

    With --json one line a text: {"text", "embedding", "model_id", "truncated"}.
    """
    with find_addresses(data_dir, encoder=encoder).client() as client:
        result = client.encode(texts, role=role, model=model)
    if as_json:
        for line in to_json(texts, result):
            print_json(line)
        return
    table = Table("text", "tokens", f"embedding ({result.embeddings.shape[1]} components)")
    for text, tokens, truncated, row in zip(
        texts, result.token_counts, result.truncated, result.embeddings, strict=True
    ):
        first = ", ".join(f"{component:.3f}" for component in row[:_SHOWN_COMPONENTS])
        table.add_row(cell(text), f"{tokens}{' (cut)' if truncated else ''}", f"{first}, …")
    print_table(table)
    print_line(f"model {result.model_id}")


def to_json(texts: list[str], result: EncodeResult) -> list[dict[str, Any]]:
    """The shape that programs rely on; nine digits are all that a float32 holds."""
    return [
        {
            "text": text,
            "embedding": [float(f"{component:.9g}") for component in row.tolist()],
            "model_id": result.model_id,
            "truncated": truncated,
        }
        for text, truncated, row in zip(texts, result.truncated, result.embeddings, strict=True)
    ]
