"""`textmatch reindex`: build the index anew for another model, beside the one in use, and switch.

What `textmatch reindex --model` does, step by step, and what it tells of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer
from redis.asyncio import Redis
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.connection import Addresses, find_addresses
from textmatch.cli.progress import StageProgress
from textmatch.cli.stack_index import connected_index
from textmatch.console import cell, print_json, print_line, print_table
from textmatch.encoder_client import EncoderClient
from textmatch.index.index import Index
from textmatch.indexing import Copier
from textmatch.io.line_reader import CommandFailed, file_name, opened, read_lines
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.redis_client import connect as connect_redis
from textmatch.queue.tombstones import Tombstones
from textmatch.reindex import steps
from textmatch.reindex.compare import Comparison, compare
from textmatch.reindex.retry import patiently
from textmatch.reindex.steps import TunedWeights, take_over_weights
from textmatch.reindex.sync import Change, CollectionSync, Progress, Walked

_ENCODE_TIMEOUT_SECONDS = 60.0
_SHOWN_QUERIES = 10


@dataclass(frozen=True)
class ReindexOptions:
    """What was asked for; `queries` None: a sample of stored texts."""

    model: str
    switch: bool
    queries: Sequence[str] | None
    sample: int
    top_k: int
    min_overlap: float
    allow_refused: bool
    max_documents_per_second: float | None


@dataclass(frozen=True)
class ReindexReport:
    """How it went.

    `weights` is None if there was no switch, and `objection` says why if one was wanted.
    """

    change: Change
    documents: int
    walked: Walked
    comparison: Comparison
    weights: TunedWeights | None
    objection: str
    seconds: float

    @property
    def switched(self) -> bool:
        """Whether the new collection is in use."""
        return self.weights is not None

    @property
    def outcome(self) -> str:
        """One line for people."""
        figures = (
            f"{self.documents:,} documents, {self.walked.written:,} copied,"
            f" {self.walked.removed:,} removed, {len(self.walked.refused):,} refused"
        )
        state = "is in use" if self.switched else "is built and not in use"
        overlap = (
            f"{self.comparison.overlap:.0%} of {len(self.comparison.queries):,} queries' answers the same"
        )
        return f"{self.change.target} {state}: {figures}; {overlap}; {self.seconds:.1f} s"

    @property
    def weights_outcome(self) -> str:
        """One line for people about tuned weights; empty if there are none."""
        if self.weights is TunedWeights.TAKEN_OVER:
            return (
                f"the weights tuned for {self.change.source} were taken over; tune again to be sure of them"
            )
        if self.weights is TunedWeights.LEFT_BEHIND:
            return (
                f"the weights tuned for {self.change.source} do not fit another model, so that the server's"
                " hold; tune again with: textmatch evaluate retrieval --tune DIR"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """The shape that programs rely on."""
        return {
            "source": self.change.source,
            "target": self.change.target,
            "documents": self.documents,
            "written": self.walked.written,
            "removed": self.walked.removed,
            "differing": self.walked.differing,
            "refused": sorted(self.walked.refused),
            "queries": len(self.comparison.queries),
            "overlap": self.comparison.overlap,
            "same_first": self.comparison.same_first,
            "switched": self.switched,
            "tuned_weights": self.weights,
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> Table:
        """The queries whose answers changed most."""
        title = f"answers in common among {self.comparison.top_k}, where fewest are"
        table = Table("query", "in common", "same first", title=title)
        for query in sorted(self.comparison.queries, key=lambda one: one.overlap)[:_SHOWN_QUERIES]:
            table.add_row(cell(query.text), f"{query.overlap:.0%}", "yes" if query.same_first else "no")
        return table


class Reindexing:
    """One run of the command."""

    def __init__(
        self,
        index: Index,
        encoder: EncoderClient,
        redis: Redis,
        options: ReindexOptions,
        progress: Progress,
    ) -> None:
        self._index = index
        self._encoder = encoder
        self._redis = redis
        self._options = options
        self._progress = progress

    async def run(self) -> ReindexReport:
        """Build, verify, compare, and switch if nothing speaks against it.

        Raises:
            TextMatchError: a step failed; the same command goes on where this one ended.
        """
        started = time.monotonic()
        going = await steps.start(self._index, self._encoder, self._options.model)
        copier = Copier(self._index, self._encoder, Tombstones(self._redis), _ENCODE_TIMEOUT_SECONDS)
        walker = CollectionSync(
            self._index, copier, going, self._progress, self._options.max_documents_per_second
        )
        walked = await walker.walk_until_equal()
        comparison = await self._compare(going, walked)
        await walker.check_roles()
        documents = await patiently(self._index.points(going.target).count)
        objection = self._objection(walked, comparison) if self._options.switch else ""
        is_wanted = self._options.switch and not objection
        weights = await self._switch(going, walked) if is_wanted else None
        return ReindexReport(
            going, documents, walked, comparison, weights, objection, time.monotonic() - started
        )

    async def _compare(self, going: Change, walked: Walked) -> Comparison:
        queries = self._options.queries
        if queries is None:
            points = self._index.points(going.source)
            sampled = await patiently(points.sample, self._options.sample) if self._options.sample else []
            refused = {letter.document.text for letter in walked.refused.values() if letter.document}
            queries = [text for text in sampled if text not in refused]
        return await compare(
            self._index,
            self._encoder,
            going,
            queries,
            self._options.top_k,
            _ENCODE_TIMEOUT_SECONDS,
            self._progress,
        )

    def _objection(self, walked: Walked, comparison: Comparison) -> str:
        if comparison.overlap < self._options.min_overlap:
            return (
                f"not switched: {comparison.overlap:.3f} of the answers are the same, less than"
                f" {self._options.min_overlap:g}"
            )
        if walked.refused and not self._options.allow_refused:
            letter = next(iter(walked.refused.values()))
            return (
                f"not switched: the model cannot embed {len(walked.refused):,} documents, such as"
                f' "{letter.key}": {letter.error}; --allow-refused leaves them to the dead letters'
            )
        return ""

    async def _switch(self, going: Change, walked: Walked) -> TunedWeights:
        """Before it is used, what it lacks must be among the dead letters, and its weights beside it."""
        if walked.refused:
            await patiently(DeadLetters(self._redis).add, list(walked.refused.values()))
        weights = await patiently(take_over_weights, self._index, going)
        await steps.switch(self._index, going)
        return weights


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
        went = _run(addresses, steps.roll_back)
        _say({"in_use": went.target, "previous": went.source}, f"{went.target} is in use again", as_json)
    else:
        dropped = _run(addresses, lambda index, _: (steps.drop_old if drop_old else steps.cancel)(index))
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
