"""`textmatch duplicates`: pairs of stored documents that mean the same, and their clusters."""

from __future__ import annotations

import csv
import heapq
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeAlias

import typer

from textmatch.cli import options
from textmatch.cli.errors import CommandFailed
from textmatch.cli.options import OutputFile, find_addresses
from textmatch.client import DuplicatePage, DuplicatePair
from textmatch.console import ProgressBars, json_line, print_result
from textmatch.documents import point_id
from textmatch.types import MAX_NEIGHBORS, DuplicateOptions
from textmatch.union_find import UnionFind

_PAIR_COLUMNS = (
    "first_id",
    "second_id",
    "score",
    "recall_score",
    "rerank_score",
    "first_text",
    "second_text",
)
_CLUSTER_COLUMNS = ("cluster", "size", "collection", "id")

# A collection and the id of a document.
_Place: TypeAlias = tuple[str, str]
_Cluster: TypeAlias = tuple[int, list[_Place]]


class PairsFormat(StrEnum):
    """Of the output."""

    CSV = "csv"
    JSONL = "jsonl"


Against = Annotated[
    str,
    typer.Option(
        "--against", metavar="COLLECTION", help="Compare with the documents of this collection instead."
    ),
]
MinScore = Annotated[float, typer.Option("--min-score", help="Minimum score of a pair, above 0 to 1.")]
Neighbors = Annotated[
    int,
    typer.Option(
        "--neighbors", min=1, max=MAX_NEIGHBORS, help="Nearest others that a document is compared with."
    ),
]
NoRerank = Annotated[
    bool, typer.Option("--no-rerank", help="Score by the embeddings alone, without the cross-encoder.")
]
OutputFormat = Annotated[PairsFormat, typer.Option("--format", help="Format of the output.")]
Clusters = Annotated[
    bool, typer.Option("--clusters", help="Print clusters of connected documents instead of pairs.")
]
Output = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Write the pairs to FILE as JSON lines.")
]


def duplicates(
    against: Against = "",
    min_score: MinScore = DuplicateOptions.min_score,
    neighbors: Neighbors = DuplicateOptions.neighbors,
    where: options.Where = None,
    no_rerank: NoRerank = False,
    output: Output = None,
    resume: options.Resume = False,
    output_format: OutputFormat = PairsFormat.JSONL,
    clusters: Clusters = False,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Find stored documents that mean the same. Prints each pair once, as soon as it is found.

    A line of JSON is {"first": {"id", "text"}, "second": {"id", "text"}, "score", "recall_score",
    "rerank_score"}. With --clusters it is {"cluster", "size", "documents": [{"collection", "id"}]}: documents
    are in one cluster if pairs connect them. CSV has a header, and a line for each pair, or for each document
    of a cluster.

    --output writes the pairs to a file, which --resume continues with the same options. --json then prints
    {"pairs": how many were added, "compared": how many documents}; without --output, it is as without --json.
    """
    if output is not None and (clusters or output_format is not PairsFormat.JSONL):
        raise typer.BadParameter("--output writes pairs as JSON lines; leave --clusters and --format out")
    if as_json and output_format is not PairsFormat.JSONL:
        raise typer.BadParameter("--json prints JSON lines; leave --format out")
    condition = options.parse_where(where)
    addresses = find_addresses(data_dir, matcher=matcher, collection=collection)
    names = addresses.collection, against or addresses.collection
    found, counts = UnionFind[_Place](), Counter[str]()
    with ExitStack() as stack:
        file = stack.enter_context(options.open_output(output, resume=resume))
        earlier = FoundPairs.of(file) if file else FoundPairs()
        client = stack.enter_context(addresses.client())
        bars = stack.enter_context(ProgressBars())
        total = None if earlier.resume_token else client.count_documents(condition)
        bars.stage("comparing", total, unit="documents")
        if file is not None:
            stack.enter_context(file.hint_to_resume())
        pages = client.find_duplicates(
            against=against,
            min_score=min_score,
            neighbors=neighbors,
            where=condition,
            rerank=not no_rerank,
            omit_text=clusters,
            resume_token=earlier.resume_token,
        )
        pairs = _Writer(sys.stdout, output_format, _PAIR_COLUMNS, pair_to_json, _pair_rows)
        for page in pages:
            counts["compared"] += page.compared_count
            if clusters:
                _join(found, page, *names)
            elif file is not None:
                counts["pairs"] += earlier.add_new(page, file)
            else:
                pairs.write(page)
            bars.advance(page.compared_count)
    if clusters:
        table = _Writer(sys.stdout, output_format, _CLUSTER_COLUMNS, _cluster_to_json, _cluster_rows)
        table.write(enumerate(found.groups(), start=1))
    elif output is not None:
        figures = {"pairs": counts["pairs"], "compared": counts["compared"]}
        line = f"found {figures['pairs']:,} pairs of {figures['compared']:,} documents"
        print_result(figures, line, as_json=as_json)


@dataclass
class FoundPairs:
    """The pairs that are in the file of an earlier run.

    Documents are compared in the order of their points, and a pair is found with one of its two documents,
    of one collection not before its first one. Therefore all pairs of the documents before the last `first`
    are in the file. The search goes on after the last one of those that the file names.

    Attributes:
        resume_token: the id of a document, all of whose pairs are in the file, as are those of all before it.
    """

    ids: set[tuple[str, str]] = field(default_factory=set)
    resume_token: str = ""

    @classmethod
    def of(cls, file: OutputFile) -> FoundPairs:
        """Read them.

        Raises:
            CommandFailed: the file has something else.
        """
        ids = set()
        for number, line in enumerate(file.lines(), start=1):
            try:
                pair = json.loads(line)
                ids.add((str(pair["first"]["id"]), str(pair["second"]["id"])))
            except (ValueError, TypeError, KeyError) as error:
                raise CommandFailed(f"{file.path} line {number} is not a pair") from error
        last = heapq.nlargest(2, {first for first, _ in ids}, key=point_id)
        return cls(ids, last[1] if len(last) > 1 else "")

    def add_new(self, pairs: Iterable[DuplicatePair], file: OutputFile) -> int:
        """Add the pairs that the file does not have; returns how many."""
        added = 0
        for pair in pairs:
            if (pair.first.id, pair.second.id) not in self.ids:
                file.add(pair_to_json(pair))
                added += 1
        return added


def pair_to_json(pair: DuplicatePair) -> dict[str, Any]:
    """A line of the output."""
    return {
        "first": {"id": pair.first.id, "text": pair.first.text},
        "second": {"id": pair.second.id, "text": pair.second.text},
        "score": pair.score,
        "recall_score": pair.recall_score,
        "rerank_score": pair.rerank_score,
    }


def _pair_rows(pair: DuplicatePair) -> list[tuple[Any, ...]]:
    scores = pair.score, pair.recall_score, pair.rerank_score
    return [(pair.first.id, pair.second.id, *scores, pair.first.text, pair.second.text)]


def _cluster_to_json(cluster: _Cluster) -> dict[str, Any]:
    number, places = cluster
    documents = [{"collection": collection, "id": document_id} for collection, document_id in places]
    return {"cluster": number, "size": len(places), "documents": documents}


def _cluster_rows(cluster: _Cluster) -> list[tuple[Any, ...]]:
    number, places = cluster
    return [(number, len(places), *place) for place in places]


def _join(found: UnionFind[_Place], page: DuplicatePage, first: str, second: str) -> None:
    for pair in page:
        found.join((first, pair.first.id), (second, pair.second.id))


class _Writer:
    """Writes items as lines of JSON, or as CSV with a header."""

    def __init__(
        self,
        stream: TextIO,
        output_format: PairsFormat,
        columns: Iterable[str],
        to_json: Callable[[Any], dict[str, Any]],
        to_rows: Callable[[Any], list[tuple[Any, ...]]],
    ) -> None:
        self._stream = stream
        self._table = csv.writer(stream, lineterminator="\n") if output_format is PairsFormat.CSV else None
        self._columns = columns
        self._to_json, self._to_rows = to_json, to_rows
        self._has_header = False

    def write(self, items: Iterable[Any]) -> None:
        """Write some items."""
        if self._table is not None and not self._has_header:
            self._table.writerow(self._columns)
            self._has_header = True
        for item in items:
            if self._table is not None:
                self._table.writerows(self._to_rows(item))
            else:
                self._stream.write(json_line(self._to_json(item)))
