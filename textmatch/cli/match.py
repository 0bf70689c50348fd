"""`textmatch match`: ask which stored texts mean the same.

Queries from a file: one a line, or an id, a tab and the query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Annotated, Any

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.connection import find_addresses
from textmatch.cli.errors import message_of
from textmatch.cli.progress import MatchProgress
from textmatch.client import Match, MatchOptions, MatchResult, Recall, ScoreExplanation, TextMatchClient
from textmatch.console import cell, one_line, print_json, print_line, print_table, warn
from textmatch.documents import text_violation
from textmatch.errors import TextMatchError
from textmatch.filter_syntax import parse
from textmatch.io.line_reader import CommandFailed, UnreadableLine, file_name, opened, read_lines


@dataclass(frozen=True)
class Query:
    """A query; `id` is "" if the line has none."""

    text: str
    id: str = ""


def read_queries(name: str) -> Iterator[Query]:
    """The queries of a file, in their order; blank lines are skipped.

    Raises:
        CommandFailed: naming the line that is no query.
    """
    with opened(name) as file:
        for line in read_lines(file):
            try:
                text = line.text()
                if text.strip():
                    yield _to_query(text)
            except UnreadableLine as error:
                raise CommandFailed(f"{file_name(name)} line {line.number}: {error}") from error


def _to_query(line: str) -> Query:
    query_id, tab, text = line.partition("\t")
    query = Query(text, query_id) if tab else Query(line)
    if "\t" in query.text:
        raise UnreadableLine("has more than two fields; it must be a query, or an id, a tab and a query")
    if violation := text_violation("query", query.text):
        raise UnreadableLine(str(violation))
    return query


_QUERIES_PER_CALL = 100

Queries = Annotated[
    list[str] | None, typer.Argument(metavar="[QUERY...]", help="The texts to look for, each in quotes.")
]
File = Annotated[
    str,
    typer.Option("--file", help="Queries, one a line, or id, tab and query; - for stdin. In the bulk lane."),
]
TopK = Annotated[int, typer.Option("--top-k", min=1, max=1000, help="How many matches at most.")]
CandidateCount = Annotated[
    int | None,
    typer.Option(
        "--candidate-count",
        min=1,
        max=1000,
        help="How many documents are recalled; 100 if left out.",
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
RecallOption = Annotated[
    Recall | None, typer.Option("--recall", help="How documents are found; the best way if left out.")
]
Explain = Annotated[bool, typer.Option("--explain", help="Also show what every score is made of.")]
NoRerank = Annotated[bool, typer.Option("--no-rerank", help="Recall order and scores; faster.")]


def match(
    queries: Queries = None,
    file: File = "",
    top_k: TopK = 10,
    candidate_count: CandidateCount = None,
    min_score: MinScore = 0.0,
    no_rerank: NoRerank = False,
    recall: RecallOption = None,
    where: Where = "",
    explain: Explain = False,
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Find the stored texts that mean about the same as a query, with scores from 0 to 1.

    With --json one line a query, in their order: {"query", "matches": [{"id", "score", "recall_score",
    "rerank_score", "text", "attributes"}], "degraded", "timings_ms", "models"}; what is missing is null. With
    --explain each match also has "explanation"; with ids in a file each line also has "query_id".
    """
    match_options = MatchOptions(top_k=top_k, min_score=min_score, rerank=not no_rerank, explain=explain)
    if candidate_count is not None:
        match_options["candidate_count"] = candidate_count
    if recall is not None:
        match_options["recall"] = recall
    if where:
        match_options["where"] = parse(where)
    failed = False
    with find_addresses(data_dir, matcher=matcher).client() as client, MatchProgress(bool(file)) as progress:
        for query, answer in _answers(client, _queries(queries or [], file), match_options):
            progress.advance()
            if isinstance(answer, TextMatchError):
                failed = True
                warn(f"textmatch: {one_line(query.id or query.text)}: {message_of(answer)}")
            elif as_json:
                print_json(to_json(answer) | ({"query_id": query.id} if query.id else {}))
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
        **({"explanation": asdict(match.explanation)} if match.explanation else {}),
    }


def _queries(texts: list[str], file: str) -> Iterator[Query]:
    if bool(texts) == bool(file):
        raise typer.BadParameter("give queries, or --file")
    return read_queries(file) if file else (Query(text) for text in texts)


def _answers(
    client: TextMatchClient, queries: Iterator[Query], match_options: MatchOptions
) -> Iterator[tuple[Query, MatchResult | TextMatchError]]:
    """One answer for each query, in their order."""
    while chunk := list(islice(queries, _QUERIES_PER_CALL)):
        if len(chunk) == 1:
            yield chunk[0], client.match(chunk[0].text, **match_options)
            continue
        results = client.batch_match([query.text for query in chunk], **match_options)
        for result in sorted(results, key=lambda one: one.query_index):
            answer = result.result or result.error
            if answer is not None:
                yield chunk[result.query_index], answer


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
        print_line(f"Incomplete: {result.degraded}; {result.scored_count} candidates were scored.")
    if not result.matches:
        print_line("Nothing matches.")


def _explained(match: Match, explanation: ScoreExplanation) -> str:
    """One part a line, each with its weight if it has one."""
    lines = [f"cosine {explanation.cosine:.3f}"]
    if explanation.bm25 is not None:
        evidence = f"{explanation.lexical_evidence:.3f} x {explanation.lexical_weight:g}"
        lines.append(f"bm25 {explanation.bm25:.1f} = {evidence}")
    if explanation.pair_classifier_score is not None:
        lines.append(f"classifier {explanation.pair_classifier_score:.3f}")
    if match.rerank_score is not None:
        lines.append(f"cross-encoder {match.rerank_score:.3f} x {explanation.rerank_weight:g}")
    return "\n".join(lines)
