"""List, replay or drop documents that could not be indexed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.errors import CommandFailed
from textmatch.cli.options import find_addresses
from textmatch.client import LetterInfo, TextMatchClient
from textmatch.console import cell, print_json, print_result, print_table

app = typer.Typer(help=__doc__, add_completion=False)

Limit = Annotated[int, typer.Option("--limit", min=1, help="Maximum number of documents.")]
Unreadable = Annotated[
    bool,
    typer.Option("--unreadable", help="Messages that could not be read, which belong to no collection."),
]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids, as shown by `list`.")]
All = Annotated[bool, typer.Option("--all", help="All failed documents.")]


@app.command("list")
def list_letters(
    limit: Limit = 100,
    unreadable: Unreadable = False,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """List failed documents and the reasons, oldest failure first.

    --json prints one line per document: {"id", "reason", "error", "failed_at", "text", "raw"}. A message that
    is not a document has "raw" instead of "text".
    """
    with find_addresses(data_dir, matcher=matcher, collection=collection).client() as client:
        letters = list(client.list_dead_letters(limit=limit, unreadable=unreadable))
    if as_json:
        for letter in letters:
            print_json(_to_json(letter))
        return
    table = Table("id", "reason", "failed", "error", "text")
    for letter in letters:
        failed_at = datetime.fromtimestamp(letter.failed_at).astimezone()
        text = letter.raw or "" if letter.text is None else letter.text
        table.add_row(
            cell(letter.id), letter.reason, f"{failed_at:%Y-%m-%d %H:%M:%S}", cell(letter.error), cell(text)
        )
    print_table(table)


@app.command()
def replay(
    ids: Ids = None,
    every: All = False,
    unreadable: Unreadable = False,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Queue failed documents again, after the cause is fixed.

    --json prints {"replayed"}: how many documents were found.
    """
    with find_addresses(data_dir, matcher=matcher, collection=collection).client() as client:
        chosen = _chosen(client, ids, every=every, unreadable=unreadable)
        count = client.replay_dead_letters(chosen, unreadable=unreadable)
    _report("replayed", count, ids, as_json=as_json)


@app.command()
def drop(
    ids: Ids = None,
    every: All = False,
    unreadable: Unreadable = False,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Delete failed documents for good.

    --json prints {"dropped"}: how many documents were found.
    """
    with find_addresses(data_dir, matcher=matcher, collection=collection).client() as client:
        chosen = _chosen(client, ids, every=every, unreadable=unreadable)
        count = client.drop_dead_letters(chosen, unreadable=unreadable)
    _report("dropped", count, ids, as_json=as_json)


def _chosen(client: TextMatchClient, ids: list[str] | None, *, every: bool, unreadable: bool) -> list[str]:
    if bool(ids) == every:
        raise typer.BadParameter("give ids or --all")
    # All ids are read first: a letter that fails again during the replay would be listed again.
    return ids or [letter.id for letter in client.list_dead_letters(unreadable=unreadable)]


def _report(done: str, count: int, ids: list[str] | None, *, as_json: bool) -> None:
    print_result({done: count}, f"{done} {count:,}", as_json=as_json)
    if ids and count < len(set(ids)):
        raise CommandFailed(f"{len(set(ids)) - count:,} of the ids are not among the dead letters")


def _to_json(letter: LetterInfo) -> dict[str, Any]:
    return {
        "id": letter.id,
        "reason": letter.reason,
        "error": letter.error,
        "failed_at": letter.failed_at,
        "text": letter.text,
        "raw": letter.raw,
    }
