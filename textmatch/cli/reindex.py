"""`textmatch reindex`: build the index for another model next to the one in use, compare, and switch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.errors import CommandFailed
from textmatch.cli.options import Addresses, find_addresses
from textmatch.collection_store import Collection
from textmatch.console import ProgressBars, cell, print_json, print_line, print_result, print_table
from textmatch.encoder_client import EncoderClient
from textmatch.indexing import Copier
from textmatch.io.line_reader import file_name, read_texts_of_lines
from textmatch.reindex import steps
from textmatch.reindex.steps import Comparison, TunedWeights, compare, take_over_weights
from textmatch.reindex.sync import RETRY, CollectionSync, Migration, SyncProgress, SyncReport

Result = TypeVar("Result")

Model = Annotated[
    str,
    typer.Option("--model", metavar="NEW", help="Name or id of a bi-encoder that the encoder serves."),
]
Rollback = Annotated[bool, typer.Option("--rollback", help="Use the previous index again.")]
DropOld = Annotated[bool, typer.Option("--drop-old", help="Delete the previous index for good.")]
Cancel = Annotated[bool, typer.Option("--cancel", help="Delete the index that is being built.")]
Switch = Annotated[bool, typer.Option("--switch/--no-switch", help="Use the new index once it is built.")]
Queries = Annotated[
    str,
    typer.Option(
        "--queries", metavar="FILE|-", help="Queries to compare, one per line. Default: stored texts."
    ),
]
Sample = Annotated[int, typer.Option("--sample", min=0, help="Number of stored texts to compare.")]
TopK = Annotated[int, typer.Option("--top-k", min=1, max=1000, help="Number of answers to compare.")]
MinOverlap = Annotated[
    float,
    typer.Option(
        "--min-overlap", min=0, max=1, help="Do not switch if a smaller share of the answers is the same."
    ),
]
AllowRefused = Annotated[
    bool, typer.Option("--allow-refused", help="Switch even if the model cannot embed some documents.")
]
MaxRate = Annotated[
    float | None,
    typer.Option("--max-documents-per-second", min=0.001, help="Maximum rate of copying. Default: no limit."),
]

_ENCODE_TIMEOUT_SECONDS = 60.0
_SHOWN_QUERIES = 10


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
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    encoder: options.Encoder = "",
    qdrant_url: options.QdrantUrl = "",
    redis_url: options.RedisUrl = "",
    data_dir: options.DataDir = None,
) -> None:
    """Build the index for another model and switch to it.

    The encoder must serve both models. Ingest, deletes and queries continue during the change. After an
    interruption, repeat the command to continue. The old index is kept for --rollback until --drop-old.

    --json prints {"source", "target", "documents", "written", "removed", "differing", "refused",
    "queries", "overlap", "same_first", "switched", "tuned_weights", "seconds"}; with --rollback
    {"in_use", "previous"}; with --drop-old or --cancel {"dropped"}.
    """
    if sum([bool(model), rollback, drop_old, cancel]) != 1:
        raise typer.BadParameter("give exactly one of --model, --rollback, --drop-old and --cancel")
    addresses = find_addresses(
        data_dir, encoder=encoder, redis_url=redis_url, qdrant_url=qdrant_url, collection=collection
    )
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
        _reindex(addresses, reindex_options, as_json=as_json)
    elif rollback:
        change = _run(addresses, lambda opened, client: steps.roll_back(opened.index, client))
        roles = {"in_use": change.target, "previous": change.source}
        print_result(roles, f"{change.target} is in use", as_json=as_json)
    else:
        drop = steps.drop_old if drop_old else steps.cancel
        dropped = _run(addresses, lambda opened, _: drop(opened.index))
        print_result({"dropped": dropped}, f"deleted {dropped}", as_json=as_json)


@dataclass(frozen=True)
class ReindexOptions:
    """Options of the command; `queries` None: compare `sample` stored texts."""

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
    """The result of a run. `weights` is None without a switch, and `objection` is why it was refused."""

    change: Migration
    documents: int
    walked: SyncReport
    comparison: Comparison
    weights: TunedWeights | None
    objection: str
    seconds: float

    @property
    def switched(self) -> bool:
        """Whether the new collection is in use."""
        return self.weights is not None

    def to_json(self) -> dict[str, Any]:
        """The output of --json."""
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

    def print(self) -> None:
        """Print the queries whose answers changed most, and the figures."""
        title = f"queries with the fewest of {self.comparison.top_k} answers in common"
        table = Table("query", "in common", "same first", title=title)
        for query in sorted(self.comparison.queries, key=lambda one: one.overlap)[:_SHOWN_QUERIES]:
            table.add_row(cell(query.text), f"{query.overlap:.0%}", "yes" if query.same_first else "no")
        print_table(table)
        print_line(
            f"{self.change.target} is {'in use' if self.switched else 'built, but not in use'}:"
            f" {self.documents:,} documents, {self.walked.written:,} copied, {self.walked.removed:,} removed,"
            f" {len(self.walked.refused):,} refused; {self.comparison.overlap:.0%} of the answers to"
            f" {len(self.comparison.queries):,} queries are the same; {self.seconds:.1f} s"
        )
        if self.weights is TunedWeights.TAKEN_OVER:
            print_line(f"the tuned weights of {self.change.source} were copied; tune again to verify them")
        if self.weights is TunedWeights.LEFT_BEHIND:
            print_line(
                f"the tuned weights of {self.change.source} do not fit another model, so the server's weights"
                " apply; tune again with: textmatch tune DIRECTORY"
            )


class Reindexing:
    """One run of the command."""

    def __init__(
        self,
        collection: Collection,
        encoder: EncoderClient,
        options: ReindexOptions,
        progress: SyncProgress,
    ) -> None:
        self._collection = collection
        self._index = collection.index
        self._encoder = encoder
        self._options = options
        self._progress = progress

    async def run(self) -> ReindexReport:
        """Build and compare the new collection, then switch unless a check objects.

        Raises:
            TextMatchError: a step failed; another run continues from there.
        """
        started = time.monotonic()
        change = await steps.start(self._index, self._encoder, self._options.model)
        copier = Copier(self._index, self._encoder, self._collection.tombstones, _ENCODE_TIMEOUT_SECONDS)
        sync = CollectionSync(
            self._index, copier, change, self._progress, self._options.max_documents_per_second
        )
        walked = await sync.run_until_equal()
        comparison = await self._compare(change, walked)
        await sync.check_roles()
        documents = await RETRY.call(self._index.points(change.target).count)
        objection = self._objection(walked, comparison) if self._options.switch else ""
        is_wanted = self._options.switch and not objection
        weights = await self._switch(change, walked) if is_wanted else None
        return ReindexReport(
            change, documents, walked, comparison, weights, objection, time.monotonic() - started
        )

    async def _compare(self, change: Migration, walked: SyncReport) -> Comparison:
        queries = self._options.queries
        if queries is None:
            points = self._index.points(change.source)
            sampled = await RETRY.call(points.sample, self._options.sample) if self._options.sample else []
            refused = {letter.document.text for letter in walked.refused.values() if letter.document}
            queries = [text for text in sampled if text not in refused]
        return await compare(
            self._index,
            self._encoder,
            change,
            queries,
            self._options.top_k,
            _ENCODE_TIMEOUT_SECONDS,
            self._progress,
        )

    def _objection(self, walked: SyncReport, comparison: Comparison) -> str:
        if comparison.overlap < self._options.min_overlap:
            return (
                f"not switched: {comparison.overlap:.3f} of the answers are the same, less than"
                f" {self._options.min_overlap:g}"
            )
        if walked.refused and not self._options.allow_refused:
            letter = next(iter(walked.refused.values()))
            return (
                f"not switched: the model cannot embed {len(walked.refused):,} documents, such as"
                f' "{letter.key}": {letter.error}; --allow-refused moves them to the dead letters'
            )
        return ""

    async def _switch(self, change: Migration, walked: SyncReport) -> TunedWeights:
        """Store refused documents in the dead letters and the tuned weights in the target, then switch."""
        if walked.refused:
            await RETRY.call(self._collection.dead_letters.add, list(walked.refused.values()))
        weights = await RETRY.call(take_over_weights, self._index, change)
        await steps.switch(self._index, change)
        return weights


def _reindex(addresses: Addresses, reindex_options: ReindexOptions, *, as_json: bool) -> None:
    with ProgressBars() as progress:

        async def run(collection: Collection, encoder: EncoderClient) -> ReindexReport:
            return await Reindexing(collection, encoder, reindex_options, progress).run()

        report = _run(addresses, run)
    if as_json:
        print_json(report.to_json())
    else:
        report.print()
    if report.objection:
        raise CommandFailed(report.objection)


def _read_queries(file: str) -> list[str]:
    queries = [text.strip() for _, text in read_texts_of_lines(file) if text.strip()]
    if not queries:
        raise CommandFailed(f"{file_name(file)} has no queries")
    return queries


def _run(addresses: Addresses, work: Callable[[Collection, EncoderClient], Awaitable[Result]]) -> Result:
    async def connected() -> Result:
        async with addresses.opened_collection() as collection:
            encoder = EncoderClient(addresses.encoder, addresses.settings.api_key, addresses.tls)
            try:
                async with collection.reindex_lease.held():
                    return await work(collection, encoder)
            finally:
                await encoder.close()

    return asyncio.run(connected())
