"""`textmatch delete`: delete documents."""

from __future__ import annotations

from typing import Annotated

import typer

from textmatch.cli import options
from textmatch.cli.options import find_addresses
from textmatch.console import print_result
from textmatch.filter_syntax import parse

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of documents.")]


def delete(
    ids: Ids = None,
    where: options.Where = "",
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Delete documents by id or by filter, queued ones too.

    --json prints {"deleted"}: how many documents were in the index.
    """
    if bool(ids) == bool(where):
        raise typer.BadParameter("give ids or --where")
    with find_addresses(data_dir, matcher=matcher, collection=collection).client() as client:
        deleted = client.delete(ids) if ids else client.delete_where(parse(where))
    line = f"deleted {deleted:,}" + (f" of {len(ids):,}" if ids else "")
    print_result({"deleted": deleted}, line, as_json=as_json)
