"""`textmatch delete`: delete documents."""

from __future__ import annotations

from typing import Annotated

import typer

from textmatch.cli import options
from textmatch.cli.options import find_addresses
from textmatch.client import Filter, TextMatchClient
from textmatch.console import print_result

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of documents.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Delete nothing; say how many documents match.")]


def delete(
    ids: Ids = None,
    where: options.Where = None,
    yes: options.Yes = False,
    dry_run: DryRun = False,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Delete documents by id or by filter, queued ones too.

    --where shows how many stored documents match, and asks before it deletes them.

    --json prints {"deleted"}, or with --dry-run {"would_delete"}: how many documents are in the index.
    """
    condition = options.parse_where(where)
    if bool(ids) == (condition is not None):
        raise typer.BadParameter("give ids or --where")
    with find_addresses(data_dir, matcher=matcher, collection=collection).client() as client:
        if dry_run or (condition and not yes):
            count = _delete(client, ids, condition, dry_run=True)
        if dry_run:
            print_result({"would_delete": count}, f"would delete {count:,}", as_json=as_json)
            return
        if condition and not yes:
            options.confirm(
                f"{count:,} stored documents match. Delete them, and queued documents that match?"
            )
        deleted = _delete(client, ids, condition)
    line = f"deleted {deleted:,}" + (f" of {len(ids):,}" if ids else "")
    print_result({"deleted": deleted}, line, as_json=as_json)


def _delete(
    client: TextMatchClient, ids: list[str] | None, condition: Filter | None, *, dry_run: bool = False
) -> int:
    if condition is not None:
        return client.delete_where(condition, dry_run=dry_run)
    return client.delete(ids or [], dry_run=dry_run)
