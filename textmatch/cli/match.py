"""`textmatch match`: search the stored texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.errors import message_of
from textmatch.cli.options import find_addresses
from textmatch.client import (
    Match,
    MatchKeywords,
    MatchResult,
    Recall,
    Rerank,
    ScoreExplanation,
    TextMatchClient,
)
from textmatch.console import ProgressBars, cell, one_line, print_json, print_line, print_table, warn
from textmatch.documents import text_violation
from textmatch.errors import TextMatchError
from textmatch.filter_syntax import parse
from textmatch.io.line_reader import UnreadableFile, read_texts_of_lines

_QUERIES_PER_CALL = 100

Queries = Annotated[
    list[str] | None, typer.Argument(metavar="QUERY", help="Texts to search for, each in quotes.")
]
File = Annotated[
    str,
    typer.Option(
        "--file",
        metavar="FILE|-",
        help="Queries, one per line, or an id, a tab and a query; - for stdin. Run at bulk priority.",
    ),
]
TopK = Annotated[int, typer.Option("--top-k", min=1, max=1000, help="Maximum number of matches.")]
CandidateCount = Annotated[
    int | None,
    typer.Option(
        "--candidate-count",
        min=1,
        max=1000,
        help="Number of documents that recall finds for reranking. Default: 100.",
    ),
]
MinScore = Annotated[float, typer.Option("--min-score", min=0, max=1, help="Minimum score of a match.")]
RecallOption = Annotated[
    Recall | None,
    typer.Option("--recall", help="Recall mode. Default: the best available."),
]
Explain = Annotated[bool, typer.Option("--explain", help="Show the components of each score.")]
RerankOption = Annotated[
    Rerank,
    typer.Option("--rerank", help="Which candidates the cross-encoder scores. auto: those where it pays."),
]


def match(
    queries: Queries = None,
    file: File = "",
    top_k: TopK = 10,
    candidate_count: CandidateCount = None,
    min_score: MinScore = 0.0,
    rerank: RerankOption = Rerank.AUTO,
    recall: RecallOption = None,
    where: options.Where = "",
    explain: Explain = False,
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Find the stored texts that mean the same as a query, with scores from 0 to 1.

    --json prints one line per query, in order: {"query", "matches": [{"id", "score", "recall_score",
    "rerank_score", "text", "attributes"}], "degraded", "timings_ms", "models"}. Missing values are null.
    Matches have an "explanation" with --explain, and lines a "query_id" if the file has ids.
    """
    match_options = MatchKeywords(top_k=top_k, min_score=min_score, rerank=rerank, explain=explain)
    if candidate_count is not None:
        match_options["candidate_count"] = candidate_count
    if recall is not None:
        match_options["recall"] = recall
    if where:
        match_options["where"] = parse(where)
    failed = False
    client = find_addresses(data_dir, matcher=matcher).client()
    with client, ProgressBars(is_shown=bool(file)) as progress:
        progress.stage("matching", unit="queries")
        for query_id, text, answer in _answers(client, _queries(queries or [], file), match_options):
            progress.advance()
            if isinstance(answer, TextMatchError):
                failed = True
                warn(f"textmatch: {one_line(query_id or text)}: {message_of(answer)}")
            elif as_json:
                print_json(_to_json(answer) | ({"query_id": query_id} if query_id else {}))
            else:
                _print(answer)
    if failed:
        raise typer.Exit(1)


def _to_json(result: MatchResult) -> dict[str, Any]:
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
        **({"explanation": asdict(match.explanation)} if match.explanation else {}),
    }


def _queries(texts: list[str], file: str) -> Iterator[tuple[str, str]]:
    """Id and text of each query; the id may be empty."""
    if bool(texts) == bool(file):
        raise typer.BadParameter("give queries or --file")
    return _read_queries(file) if file else (("", text) for text in texts)


def _read_queries(file: str) -> Iterator[tuple[str, str]]:
    """Id and text of each query of a file, without blank lines.

    Raises:
        UnreadableFile: a line is not a query.
    """
    for place, line in read_texts_of_lines(file):
        if not line.strip():
            continue
        query_id, tab, text = line.partition("\t")
        if not tab:
            query_id, text = "", line
        if "\t" in text:
            raise UnreadableFile.of_field(place, "must be a query, or an id, a tab and a query")
        if violation := text_violation("query", text):
            raise UnreadableFile.of_field(place, str(violation))
        yield query_id, text


def _answers(
    client: TextMatchClient, queries: Iterator[tuple[str, str]], match_options: MatchKeywords
) -> Iterator[tuple[str, str, MatchResult | TextMatchError]]:
    """Id, text and answer of each query, in order."""
    while chunk := list(islice(queries, _QUERIES_PER_CALL)):
        if len(chunk) == 1:
            [(query_id, text)] = chunk
            yield query_id, text, client.match(text, **match_options)
            continue
        results = client.batch_match([text for _, text in chunk], **match_options)
        for result in sorted(results, key=lambda one: one.query_index):
            answer = result.result or result.error
            if answer is not None:
                yield *chunk[result.query_index], answer


def _print(result: MatchResult) -> None:
    table = Table(title=cell(result.query), title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("text", overflow="fold")
    for rank, match in enumerate(result, start=1):
        score = f"{match.score:.3f}"
        if match.explanation:
            score += f"\n{_explained(match, match.explanation)}"
        table.add_row(str(rank), score, cell(match.document.id), cell(match.document.text))
    print_table(table)
    if result.degraded:
        print_line(f"Incomplete: {result.degraded}; {result.scored_count} candidates were reranked.")
    if not result.matches:
        print_line("No matches.")


def _explained(match: Match, explanation: ScoreExplanation) -> str:
    """One component per line, with its weight if it has one."""
    weights, lines = explanation.weights, []
    if explanation.cosine is not None:
        lines.append(f"cosine {explanation.cosine:.3f} x {weights.cosine:.3g}")
    if explanation.lexical is not None:
        lines.append(f"lexical {explanation.lexical:.3f} x {weights.lexical:.3g}")
    if explanation.pair_classifier_score is not None:
        lines.append(f"classifier {explanation.pair_classifier_score:.3f}")
    if match.rerank_score is not None:
        lines.append(f"cross-encoder {match.rerank_score:.3f}, log odds x {weights.pair:.3g}")
    return "\n".join(lines)
