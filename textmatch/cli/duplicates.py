"""`textmatch duplicates`: pairs of stored documents that mean the same, and their clusters."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Annotated, Any, TextIO, TypeAlias

import typer

from textmatch.cli import options
from textmatch.cli.errors import CommandFailed, message_of
from textmatch.cli.options import find_addresses
from textmatch.client import DuplicatePage, DuplicatePair
from textmatch.console import ProgressBars, json_line
from textmatch.errors import TextMatchError
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
Resume = Annotated[
    str,
    typer.Option("--resume", metavar="TOKEN", help="Go on after an interruption; its message has the token."),
]


def duplicates(
    against: Against = "",
    min_score: MinScore = DuplicateOptions.min_score,
    neighbors: Neighbors = DuplicateOptions.neighbors,
    where: options.Where = None,
    no_rerank: NoRerank = False,
    output_format: OutputFormat = PairsFormat.JSONL,
    clusters: Clusters = False,
    resume: Resume = "",
    collection: options.CollectionName = "",
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Find stored documents that mean the same. Prints each pair once, as soon as it is found.

    A line of JSON is {"first": {"id", "text"}, "second": {"id", "text"}, "score", "recall_score",
    "rerank_score"}. With --clusters it is {"cluster", "size", "documents": [{"collection", "id"}]}: documents
    are in one cluster if pairs connect them. CSV has a header, and a line for each pair, or for each document
    of a cluster.
    """
    if clusters and resume:
        raise typer.BadParameter("--clusters needs all pairs; leave --resume out")
    condition = options.parse_where(where)
    addresses = find_addresses(data_dir, matcher=matcher, collection=collection)
    names = addresses.collection, against or addresses.collection
    found, token = UnionFind[_Place](), resume
    pairs = _Writer(sys.stdout, output_format, _PAIR_COLUMNS, pair_to_json, _pair_rows)
    with addresses.client() as client, ProgressBars() as bars:
        bars.stage("comparing", None if resume else client.count_documents(condition), unit="documents")
        pages = client.find_duplicates(
            against=against,
            min_score=min_score,
            neighbors=neighbors,
            where=condition,
            rerank=not no_rerank,
            omit_text=clusters,
            resume_token=resume,
        )
        try:
            for page in pages:
                if clusters:
                    _join(found, page, *names)
                else:
                    pairs.write(page)
                token = page.resume_token
                bars.advance(page.compared_count)
        except (TextMatchError, KeyboardInterrupt) as error:
            if not token or clusters:
                raise
            sys.stdout.flush()
            reason = message_of(error) if isinstance(error, TextMatchError) else "interrupted"
            raise CommandFailed(f"{reason}; go on with --resume '{token}'") from error
    if clusters:
        table = _Writer(sys.stdout, output_format, _CLUSTER_COLUMNS, _cluster_to_json, _cluster_rows)
        table.write(enumerate(found.groups(), start=1))


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
