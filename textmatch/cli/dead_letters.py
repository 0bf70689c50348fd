"""See, replay or drop documents that could not be indexed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from redis.asyncio import Redis
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.connection import find_addresses
from textmatch.console import cell, print_json, print_line, print_table
from textmatch.io.line_reader import CommandFailed
from textmatch.queue.dead_letters import DeadLetter, DeadLetters
from textmatch.queue.producer import Producer
from textmatch.queue.redis_client import connect

Answer = TypeVar("Answer")

app = typer.Typer(help=__doc__, add_completion=False)

RedisUrl = Annotated[str, typer.Option("--redis-url", help="Redis, as redis://host:6379/0.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Which ones, as `list` names them.")]
All = Annotated[bool, typer.Option("--all", help="All there are.")]


@app.command("list")
def list_letters(
    limit: Limit = 100,
    as_json: options.Json = False,
    redis_url: RedisUrl = "",
    data_dir: options.DataDir = None,
) -> None:
    """Show the documents that failed and why, the oldest failure first.

    With --json one line each: {"id", "reason", "error", "failed_at", "text", "raw"}; a message that is no
    document has no text but its raw form.
    """
    url = _redis_url(redis_url, data_dir)
    letters = _run(url, lambda redis: DeadLetters(redis).entries(limit))
    if as_json:
        for letter in letters:
            print_json(to_json(letter))
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
    as_json: options.Json = False,
    redis_url: RedisUrl = "",
    data_dir: options.DataDir = None,
) -> None:
    """Put failed documents into the queue again, once their cause is mended.

    With --json: {"replayed"}, how many were there.
    """

    async def replay_them(redis: Redis) -> int:
        letters = DeadLetters(redis)
        return await letters.replay(await _chosen(letters, ids, every), Producer(redis))

    _report("replayed", _run(_redis_url(redis_url, data_dir), replay_them), ids, as_json)


@app.command()
def drop(
    ids: Ids = None,
    every: All = False,
    as_json: options.Json = False,
    redis_url: RedisUrl = "",
    data_dir: options.DataDir = None,
) -> None:
    """Forget failed documents for good.

    With --json: {"dropped"}, how many were there.
    """

    async def drop_them(redis: Redis) -> int:
        letters = DeadLetters(redis)
        return await letters.drop(await _chosen(letters, ids, every))

    _report("dropped", _run(_redis_url(redis_url, data_dir), drop_them), ids, as_json)


def to_json(letter: DeadLetter) -> dict[str, Any]:
    """The shape that programs rely on."""
    return {
        "id": letter.key,
        "reason": letter.reason,
        "error": letter.error,
        "failed_at": letter.failed_at,
        "text": letter.document.text if letter.document else None,
        "raw": letter.raw,
    }


def _redis_url(redis_url: str, data_dir: Path | None) -> str:
    return find_addresses(data_dir, redis_url=redis_url).redis_url


def _run(redis_url: str, work: Callable[[Redis], Awaitable[Answer]]) -> Answer:
    async def connected() -> Answer:
        async with connect(redis_url) as redis:
            return await work(redis)

    return asyncio.run(connected())


async def _chosen(letters: DeadLetters, ids: list[str] | None, every: bool) -> Sequence[str]:
    if bool(ids) == every:
        raise typer.BadParameter("name the documents, or give --all")
    return ids or [letter.key for letter in await letters.entries(await letters.count())]


def _report(done: str, count: int, ids: list[str] | None, as_json: bool) -> None:
    if as_json:
        print_json({done: count})
    else:
        print_line(f"{done} {count:,}")
    if ids and count < len(set(ids)):
        raise CommandFailed(f"{len(set(ids)) - count:,} of these are not among the dead letters")
