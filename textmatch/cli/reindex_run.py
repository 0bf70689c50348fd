"""What `textmatch reindex --model` does, step by step, and what it tells of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from rich.table import Table

from textmatch.cli.output import cell
from textmatch.encoder_client import EncoderClient
from textmatch.index.store import Index
from textmatch.queue.dead_letters import DeadLetters
from textmatch.queue.tombstones import Tombstones
from textmatch.reindexing import change
from textmatch.reindexing.comparison import Comparison, compare
from textmatch.reindexing.copying import Copier
from textmatch.reindexing.patience import patiently
from textmatch.reindexing.walking import Change, Progress, Walked, Walker
from textmatch.reindexing.weights import TunedWeights, take_over_weights

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
        going = await change.start(self._index, self._encoder, self._options.model)
        copier = Copier(self._index, self._encoder, Tombstones(self._redis), _ENCODE_TIMEOUT_SECONDS)
        walker = Walker(self._index, copier, going, self._progress, self._options.max_documents_per_second)
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
        await change.switch(self._index, going)
        return weights
