"""`textmatch reindex`: build the index anew for another model, beside the one in use, and switch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import typer

from textmatch.cli import options
from textmatch.cli.connection import Addresses, find_addresses
from textmatch.cli.failures import CommandFailed
from textmatch.cli.lines import file_name, opened, read_lines
from textmatch.cli.output import print_json, print_line, print_table
from textmatch.cli.progress import StageProgress
from textmatch.cli.reindex_run import Reindexing, ReindexOptions, ReindexReport
from textmatch.cli.stack_index import connected_index
from textmatch.encoder_client import EncoderClient
from textmatch.index.store import Index
from textmatch.queue.connection import connect as connect_redis
from textmatch.reindexing import change

Answer = TypeVar("Answer")

Model = Annotated[
    str,
    typer.Option("--model", metavar="NEW", help="Name or id of a bi-encoder that the encoder serves."),
]
Rollback = Annotated[bool, typer.Option("--rollback", help="Put the previous index to use again.")]
DropOld = Annotated[bool, typer.Option("--drop-old", help="Delete the previous index for good.")]
Cancel = Annotated[bool, typer.Option("--cancel", help="Delete the index that is being built.")]
Switch = Annotated[bool, typer.Option("--switch/--no-switch", help="Whether to use it once it is built.")]
Queries = Annotated[
    str,
    typer.Option("--queries", metavar="FILE|-", help="Compare these, one a line, instead of stored texts."),
]
Sample = Annotated[int, typer.Option("--sample", min=0, help="How many stored texts to compare.")]
TopK = Annotated[int, typer.Option("--top-k", min=1, max=1000, help="How many answers to compare.")]
MinOverlap = Annotated[
    float, typer.Option("--min-overlap", min=0, max=1, help="Do not switch if fewer answers are the same.")
]
AllowRefused = Annotated[
    bool, typer.Option("--allow-refused", help="Switch even if the model cannot embed some documents.")
]
MaxRate = Annotated[
    float | None,
    typer.Option(
        "--max-documents-per-second", min=0.001, help="Copy no faster; queries go first in any case."
    ),
]
RedisUrl = Annotated[str, typer.Option("--redis-url", help="Redis, as redis://host:6379/0.")]


def reindex(
    model: Model = "",
    rollback: Rollback = False,
    drop_old: DropOld = False,
    cancel: Cancel = False,
    switch: Switch = True,
    queries: Queries = "",
    sample: Sample = 100,
    top_k: TopK = 10,
    min_overlap: MinOverlap = 0.0,
    allow_refused: AllowRefused = False,
    max_documents_per_second: MaxRate = None,
    as_json: options.Json = False,
    encoder: options.Encoder = "",
    qdrant_url: options.QdrantUrl = "",
    redis_url: RedisUrl = "",
    data_dir: options.DataDir = None,
) -> None:
    """Build the index anew for another model, beside the one in use, and switch to it.

    The encoder must serve both models. Ingest, deletes and queries go on meanwhile. Interrupted, the same
    command goes on where it was. The old index is kept until --drop-old.

    With --json: {"source", "target", "documents", "written", "removed", "differing", "refused", "queries",
    "overlap", "same_first", "switched", "tuned_weights", "seconds"}; --rollback {"in_use", "previous"};
    --drop-old and --cancel {"dropped"}.
    """
    if sum([bool(model), rollback, drop_old, cancel]) != 1:
        raise typer.BadParameter("give exactly one of --model, --rollback, --drop-old and --cancel")
    addresses = find_addresses(data_dir, encoder=encoder, redis_url=redis_url, qdrant_url=qdrant_url)
    if model:
        reindex_options = ReindexOptions(
            model=model,
            switch=switch,
            queries=_read_queries(queries) if queries else None,
            sample=sample,
            top_k=top_k,
            min_overlap=min_overlap,
            allow_refused=allow_refused,
            max_documents_per_second=max_documents_per_second,
        )
        _reindex(addresses, reindex_options, as_json)
    elif rollback:
        went = _run(addresses, change.roll_back)
        _say({"in_use": went.target, "previous": went.source}, f"{went.target} is in use again", as_json)
    else:
        dropped = _run(addresses, lambda index, _: (change.drop_old if drop_old else change.cancel)(index))
        _say({"dropped": dropped}, f"deleted {dropped}", as_json)


def _reindex(addresses: Addresses, reindex_options: ReindexOptions, as_json: bool) -> None:
    with StageProgress() as progress:

        async def run(index: Index, encoder: EncoderClient) -> ReindexReport:
            async with connect_redis(addresses.redis_url) as redis:
                return await Reindexing(index, encoder, redis, reindex_options, progress).run()

        report = _run(addresses, run)
    if as_json:
        print_json(report.to_json())
    else:
        print_table(report.table())
        print_line(report.outcome)
        if report.weights_outcome:
            print_line(report.weights_outcome)
    if report.objection:
        raise CommandFailed(report.objection)


def _say(value: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        print_json(value)
    else:
        print_line(line)


def _read_queries(name: str) -> list[str]:
    with opened(name) as file:
        texts = [line.text().strip() for line in read_lines(file)]
    found = [text for text in texts if text]
    if not found:
        raise CommandFailed(f"{file_name(name)} has no queries")
    return found


def _run(addresses: Addresses, work: Callable[[Index, EncoderClient], Awaitable[Answer]]) -> Answer:
    async def connected() -> Answer:
        async with _connections(addresses) as (index, encoder):
            return await work(index, encoder)

    return asyncio.run(connected())


@asynccontextmanager
async def _connections(addresses: Addresses) -> AsyncIterator[tuple[Index, EncoderClient]]:
    async with connected_index(addresses) as index:
        encoder = EncoderClient(addresses.encoder, addresses.api_key, addresses.tls)
        try:
            yield index, encoder
        finally:
            await encoder.close()
