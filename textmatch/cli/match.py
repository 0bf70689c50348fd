"""`textmatch match`: ask which stored texts mean the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.connection import find_addresses
from textmatch.cli.failures import message_of
from textmatch.cli.output import cell, one_line, print_json, print_line, print_table, warn
from textmatch.client import Match, MatchOptions, MatchResult, TextMatchClient
from textmatch.errors import TextMatchError
from textmatch.where import parse

Queries = Annotated[
    list[str], typer.Argument(metavar="QUERY...", help="The texts to look for, each in quotes.")
]
TopK = Annotated[int, typer.Option("--top-k", min=1, max=1000, help="How many matches at most.")]
CandidateCount = Annotated[
    int | None,
    typer.Option(
        "--candidate-count",
        min=1,
        max=1000,
        help="How many documents are recalled and scored; 100 if left out.",
    ),
]
MinScore = Annotated[float, typer.Option("--min-score", min=0, max=1, help="Leave out what scores lower.")]
Where = Annotated[
    str,
    typer.Option(
        metavar="FILTER",
        help="Only documents whose attributes fit, such as 'module = \"os\" and year >= 2020'.",
    ),
]
NoRerank = Annotated[bool, typer.Option("--no-rerank", help="Recall order and scores; faster.")]


def match(
    queries: Queries,
    top_k: TopK = 10,
    candidate_count: CandidateCount = None,
    min_score: MinScore = 0.0,
    no_rerank: NoRerank = False,
    where: Where = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Find the stored texts that mean about the same as a query, with scores from 0 to 1.

    With --json one line a query: {"query", "matches": [{"id", "score", "recall_score", "rerank_score",
    "text", "attributes"}], "degraded", "timings_ms", "models"}; what is missing is null.
    """
    match_options = MatchOptions(top_k=top_k, min_score=min_score, rerank=not no_rerank)
    if candidate_count is not None:
        match_options["candidate_count"] = candidate_count
    if where:
        match_options["where"] = parse(where)
    failed = False
    with find_addresses(data_dir, matcher=matcher).client() as client:
        for query, answer in _answers(client, queries, match_options):
            if isinstance(answer, TextMatchError):
                failed = True
                warn(f"textmatch: {one_line(query)}: {message_of(answer)}")
            elif as_json:
                print_json(to_json(answer))
            else:
                _print(answer)
    if failed:
        raise typer.Exit(1)


def to_json(result: MatchResult) -> dict[str, Any]:
    """The shape that programs rely on."""
    timings = result.timings
    return {
        "query": result.query,
        "matches": [_match_to_json(match) for match in result],
        "degraded": result.degraded,
        "timings_ms": {
            "encode": timings.encode_ms,
            "recall": timings.recall_ms,
            "rerank": timings.rerank_ms,
            "total": timings.total_ms,
        },
        "models": {"bi_encoder": result.bi_encoder_model_id, "cross_encoder": result.cross_encoder_model_id},
    }


def _match_to_json(match: Match) -> dict[str, Any]:
    return {
        "id": match.document.id,
        "score": match.score,
        "recall_score": match.recall_score,
        "rerank_score": match.rerank_score,
        "text": match.document.text,
        "attributes": dict(match.document.attributes),
    }


def _answers(
    client: TextMatchClient, queries: list[str], match_options: MatchOptions
) -> Iterator[tuple[str, MatchResult | TextMatchError]]:
    """One answer for each query, in their order."""
    if len(queries) == 1:
        yield queries[0], client.match(queries[0], **match_options)
        return
    results = sorted(client.batch_match(queries, **match_options), key=lambda result: result.query_index)
    for query, result in zip(queries, results, strict=True):
        if result.result is not None:
            yield query, result.result
        elif result.error is not None:
            yield query, result.error


def _print(result: MatchResult) -> None:
    table = Table(title=cell(result.query), title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("text", overflow="fold")
    for rank, match in enumerate(result, start=1):
        table.add_row(str(rank), f"{match.score:.3f}", cell(match.document.id), cell(match.document.text))
    print_table(table)
    if result.degraded:
        print_line(f"In recall order only: {result.degraded}.")
    if not result.matches:
        print_line("Nothing matches.")
