"""`textmatch delete`: remove documents."""

from __future__ import annotations

from typing import Annotated

import typer

from textmatch.cli import options
from textmatch.cli.connection import find_addresses
from textmatch.cli.output import print_json, print_line

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Which documents.")]


def delete(
    ids: Ids,
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Remove documents; what is not there does not matter.

    With --json: {"deleted"}, how many were there.
    """
    with find_addresses(data_dir, matcher=matcher).client() as client:
        deleted = client.delete(ids)
    if as_json:
        print_json({"deleted": deleted})
    else:
        print_line(f"deleted {deleted:,} of {len(ids):,}")
