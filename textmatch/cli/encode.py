"""`textmatch encode`: embeddings of texts."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.options import find_addresses
from textmatch.client import EncodeResult, Role
from textmatch.console import cell, print_json, print_line, print_table

Texts = Annotated[list[str], typer.Argument(metavar="TEXT", help="Texts, each in quotes.")]
RoleOption = Annotated[Role, typer.Option("--role", help="How the texts are used.")]
Model = Annotated[str, typer.Option("--model", help="Name or id of a loaded bi-encoder.")]
Normalize = Annotated[
    bool,
    typer.Option("--normalize/--no-normalize", help="Length 1, or as long as the model makes embeddings."),
]

_SHOWN_COMPONENTS = 4


def encode(
    texts: Texts,
    role: RoleOption = Role.DOCUMENT,
    model: Model = "",
    normalize: Normalize = True,
    truncate: options.Truncate = None,
    as_json: options.Json = False,
    encoder: options.Encoder = "",
    data_dir: options.DataDir = None,
) -> None:
    """Compute embeddings.

    --json prints one line per text: {"text", "embedding", "model_id", "truncated"}.
    """
    with find_addresses(data_dir, encoder=encoder).client() as client:
        result = client.encode(texts, role=role, model=model, normalize=normalize, truncate=truncate)
    if as_json:
        _print_json(texts, result)
    else:
        _print_table(texts, result)


def _print_json(texts: list[str], result: EncodeResult) -> None:
    for text, truncated, row in zip(texts, result.truncated, result.embeddings, strict=True):
        # Nine significant digits represent any float32 exactly.
        embedding = [float(f"{component:.9g}") for component in row.tolist()]
        print_json(
            {"text": text, "embedding": embedding, "model_id": result.model_id, "truncated": truncated}
        )


def _print_table(texts: list[str], result: EncodeResult) -> None:
    table = Table("text", "tokens", f"embedding ({result.embeddings.shape[1]} components)")
    for text, tokens, truncated, row in zip(
        texts, result.token_counts, result.truncated, result.embeddings, strict=True
    ):
        first = ", ".join(f"{component:.3f}" for component in row[:_SHOWN_COMPONENTS])
        table.add_row(cell(text), f"{tokens}{' (truncated)' if truncated else ''}", f"{first}, …")
    print_table(table)
    print_line(f"model {result.model_id}")
