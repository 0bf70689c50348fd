"""List, replay or drop documents that could not be indexed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.errors import CommandFailed
from textmatch.cli.options import Addresses, find_addresses
from textmatch.collection_config import DEFAULT_COLLECTION, CollectionConfig, normalized
from textmatch.console import cell, print_json, print_result, print_table
from textmatch.errors import CollectionNotFound
from textmatch.queue.dead_letters import DeadLetter, DeadLetters
from textmatch.queue.producer import Producer
from textmatch.queue.registry import Registry

Result = TypeVar("Result")

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
    redis_url: options.RedisUrl = "",
    data_dir: options.DataDir = None,
) -> None:
    """List failed documents and the reasons, oldest failure first.

    --json prints one line per document: {"id", "reason", "error", "failed_at", "text", "raw"}. A message that
    is not a document has "raw" instead of "text".
    """
    addresses = find_addresses(data_dir, redis_url=redis_url, collection=collection)
    letters = _run(addresses, unreadable, lambda opened: opened.letters.entries(limit))
    if as_json:
        for letter in letters:
            print_json(_to_json(letter))
        return
    table = Table("id", "reason", "failed", "error", "text")
    for letter in letters:
        failed_at = datetime.fromtimestamp(letter.failed_at).astimezone()
        text = letter.document.text if letter.document else letter.raw or ""
        table.add_row(
            cell(letter.key), letter.reason, f"{failed_at:%Y-%m-%d %H:%M:%S}", cell(letter.error), cell(text)
        )
    print_table(table)


@app.command()
def replay(
    ids: Ids = None,
    every: All = False,
    unreadable: Unreadable = False,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    redis_url: options.RedisUrl = "",
    data_dir: options.DataDir = None,
) -> None:
    """Queue failed documents again, after the cause is fixed.

    --json prints {"replayed"}: how many documents were found.
    """

    async def replay_chosen(opened: _Opened) -> int:
        chosen = await _chosen(opened.letters, ids, every=every)
        return await opened.letters.replay(chosen, opened.producer, opened.collection)

    addresses = find_addresses(data_dir, redis_url=redis_url, collection=collection)
    _report("replayed", _run(addresses, unreadable, replay_chosen), ids, as_json=as_json)


@app.command()
def drop(
    ids: Ids = None,
    every: All = False,
    unreadable: Unreadable = False,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    redis_url: options.RedisUrl = "",
    data_dir: options.DataDir = None,
) -> None:
    """Delete failed documents for good.

    --json prints {"dropped"}: how many documents were found.
    """

    async def drop_chosen(opened: _Opened) -> int:
        return await opened.letters.drop(await _chosen(opened.letters, ids, every=every))

    addresses = find_addresses(data_dir, redis_url=redis_url, collection=collection)
    _report("dropped", _run(addresses, unreadable, drop_chosen), ids, as_json=as_json)


@dataclass(frozen=True)
class _Opened:
    """The dead letters of a collection, or the unreadable messages of the installation."""

    collection: CollectionConfig
    letters: DeadLetters
    producer: Producer


def _run(addresses: Addresses, unreadable: bool, work: Callable[[_Opened], Awaitable[Result]]) -> Result:
    async def connected() -> Result:
        async with addresses.redis() as (redis, keys):
            registry, name = Registry(redis, keys), normalized(addresses.collection)
            config = await registry.find(name)
            if config is None and not unreadable and name != DEFAULT_COLLECTION:
                raise CollectionNotFound(name)
            config = config or CollectionConfig(name)
            letter_keys = keys.letters if unreadable else registry.keys_of(config).letters
            return await work(_Opened(config, DeadLetters(redis, letter_keys), Producer(redis, keys)))

    return asyncio.run(connected())


async def _chosen(dead_letters: DeadLetters, ids: list[str] | None, *, every: bool) -> list[str]:
    if bool(ids) == every:
        raise typer.BadParameter("give ids or --all")
    return ids or [letter.key for letter in await dead_letters.entries(await dead_letters.count())]


def _report(done: str, count: int, ids: list[str] | None, *, as_json: bool) -> None:
    print_result({done: count}, f"{done} {count:,}", as_json=as_json)
    if ids and count < len(set(ids)):
        raise CommandFailed(f"{len(set(ids)) - count:,} of the ids are not among the dead letters")


def _to_json(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.key,
        "reason": letter.reason,
        "error": letter.error,
        "failed_at": letter.failed_at,
        "text": letter.document.text if letter.document else None,
        "raw": letter.raw,
    }
