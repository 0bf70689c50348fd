"""`textmatch match`: search the stored texts."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.errors import CommandFailed
from textmatch.cli.options import OutputFile, find_addresses
from textmatch.client import (
    Match,
    MatchKeywords,
    MatchResult,
    Recall,
    Rerank,
    ScoreExplanation,
    TextMatchClient,
)
from textmatch.console import (
    ProgressBars,
    cell,
    one_line,
    print_json,
    print_line,
    print_result,
    print_table,
    warn,
)
from textmatch.documents import text_violation
from textmatch.io.line_reader import Line, UnreadableLine, file_name, open_data_file, read_lines

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
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Write the answers to FILE as JSON lines."),
]
Explain = Annotated[bool, typer.Option("--explain", help="Show the components of each score.")]
DocumentId = Annotated[
    str, typer.Option("--id", metavar="ID", help="Instead of a query: what is similar to this document.")
]
ExcludeIds = Annotated[
    list[str] | None,
    typer.Option("--exclude-id", metavar="ID", help="A document that is not returned; may be repeated."),
]
RequireComplete = Annotated[
    bool, typer.Option("--require-complete", help="Fail instead of giving an incomplete answer.")
]
GroupBy = Annotated[
    str,
    typer.Option("--group-by", metavar="FIELD", help="Only the best match of each value of an attribute."),
]
RerankOption = Annotated[
    Rerank,
    typer.Option("--rerank", help="Which candidates the cross-encoder scores. auto: those where it pays."),
]


def match(
    queries: Queries = None,
    file: File = "",
    document_id: DocumentId = "",
    output: Output = None,
    resume: options.Resume = False,
    top_k: TopK = 10,
    candidate_count: CandidateCount = None,
    min_score: MinScore = 0.0,
    rerank: RerankOption = Rerank.AUTO,
    recall: RecallOption = None,
    where: options.Where = None,
    exclude_id: ExcludeIds = None,
    group_by: GroupBy = "",
    require_complete: RequireComplete = False,
    explain: Explain = False,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Find the stored texts that mean the same as a query, with scores from 0 to 1.

    --json prints one line per query, in order: {"query", "matches": [{"id", "score", "recall_score",
    "rerank_score", "text", "attributes", "version", "passage"}], "degraded", "timings_ms", "models"}. Missing
    values are null. "passage" is {"text", "start", "end", "number", "score"} of the best passage, or null if
    the document has one only. With --id, "query" is the id. Matches have an "explanation" with --explain, and
    a "query_passage" {"start", "end", "number"} if the query is longer than the model reads and was divided.
    Lines have a "query_id" if the file has ids. The line of a query that failed is {"query_id", "query",
    "error"}. An invalid line of the file fails alone.

    While the matcher is unavailable, unanswered queries are asked again, for up to two minutes. --output
    writes the JSON lines to a file, which --resume continues after an interruption.
    """
    match_options = MatchKeywords(
        top_k=top_k,
        min_score=min_score,
        rerank=rerank,
        recall=recall,
        explain=explain,
        exclude_ids=exclude_id or [],
        group_by=group_by,
        require_complete=require_complete,
    )
    if candidate_count is not None:
        match_options["candidate_count"] = candidate_count
    if (condition := options.parse_where(where)) is not None:
        match_options["where"] = condition
    chosen = _queries(queries or [], file, document_id)
    counts = Counter[str]()
    warned = set[str]()
    addresses = find_addresses(data_dir, matcher=matcher, collection=collection)
    with ExitStack() as stack:
        answers = stack.enter_context(options.open_output(output, resume=resume))
        done = _skip_answered(chosen, answers) if answers else 0
        client = stack.enter_context(addresses.client())
        progress = stack.enter_context(ProgressBars(is_shown=bool(file)))
        progress.stage("matching", done=done, unit="queries")
        show = _print_line if as_json else _print
        if answers is not None:
            stack.enter_context(answers.hint_to_resume())
        is_single = len(queries or []) == 1 or bool(document_id)
        for query, answer in _answer(client, chosen, match_options, is_single=is_single):
            progress.advance()
            counts["failed" if isinstance(answer, str) else "answered"] += 1
            if not isinstance(answer, str):
                _warn_of_filter(answer, warned)
            if answers is not None:
                # One for each query of the input, in its order.
                answers.add(_line(query, answer))
            else:
                show(query, answer)
    _end(counts, is_summarized=output is not None, as_json=as_json)


def _warn_of_filter(answer: MatchResult, warned: set[str]) -> None:
    """Print what is suspicious about the filter, each warning once."""
    for warning in answer.filter_warnings:
        if warning not in warned:
            warned.add(warning)
            warn(f"textmatch: --where: {one_line(warning)}")


def _end(counts: Counter[str], *, is_summarized: bool, as_json: bool) -> None:
    """Print the counts, unless the answers were printed."""
    figures = {"answered": counts["answered"], "failed": counts["failed"]}
    if is_summarized:
        line = f"answered {figures['answered']:,}, failed {figures['failed']:,}"
        print_result(figures, line, as_json=as_json)
    elif as_json and counts["failed"]:
        warn(f"textmatch: {counts['failed']:,} of {counts.total():,} queries failed")
    if counts["failed"]:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Query:
    """A query with its id, which may be empty; or an invalid line, with its problem and without a text.

    `document_id` is that of a stored document which is the query.
    """

    query_id: str = ""
    text: str | None = None
    problem: str = ""
    document_id: str = ""


# Matches, or why there are none.
Answer: TypeAlias = MatchResult | str


def _skip_answered(queries: Iterator[Query], answers: OutputFile) -> int:
    """Skip the queries that an earlier run has answered; returns how many.

    Raises:
        CommandFailed: the file has answers to other queries.
    """
    count = 0
    for count, line in enumerate(answers.lines(), start=1):
        if not _is_answer_to(next(queries, None), line):
            raise CommandFailed(f"{answers.path} line {count} does not answer the same line of the input")
    return count


def _is_answer_to(query: Query | None, line: bytes) -> bool:
    try:
        answer = json.loads(line)
    except ValueError:
        return False
    if query is None or not isinstance(answer, dict):
        return False
    return (answer.get("query_id") or "", answer.get("query")) == (query.query_id, query.text)


def _line(query: Query, answer: Answer) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"query_id": query.query_id or None, "query": query.text, "error": answer}
    return result_to_json(answer) | ({"query_id": query.query_id} if query.query_id else {})


def result_to_json(result: MatchResult) -> dict[str, Any]:
    """What `--json` prints."""
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
        "version": match.document.version,
        "passage": asdict(match.passage) if match.document.passage else None,
        **({"explanation": asdict(match.explanation)} if match.explanation else {}),
        **({"query_passage": asdict(match.query_passage)} if match.query_passage else {}),
    }


def _queries(texts: list[str], file: str, document_id: str) -> Iterator[Query]:
    if bool(texts) + bool(file) + bool(document_id) != 1:
        raise typer.BadParameter("give queries, --file or --id")
    if document_id:
        return iter((Query(text=document_id, document_id=document_id),))
    return _read_queries(file) if file else (Query(text=text) for text in texts)


def _read_queries(file: str) -> Iterator[Query]:
    """The queries of a file, without blank lines.

    Raises:
        UnreadableFile: the file cannot be opened.
    """
    with open_data_file(file) as source:
        for line in read_lines(source):
            if line.content.strip():
                yield _query(line, f"{file_name(file)} line {line.number}")


def _query(line: Line, place: str) -> Query:
    try:
        text = line.text()
    except UnreadableLine as error:
        return Query(problem=f"{place}: {error}")
    query_id, tab, query = text.partition("\t")
    if not tab:
        query_id, query = "", text
    if "\t" in query:
        return Query(problem=f"{place}: must be a query, or an id, a tab and a query")
    if violation := text_violation("query", query):
        return Query(query_id, problem=f"{place}: {violation}")
    return Query(query_id, query)


def _answer(
    client: TextMatchClient, queries: Iterator[Query], match_options: MatchKeywords, *, is_single: bool
) -> Iterator[tuple[Query, Answer]]:
    """Each query with its answer, in order. A single one goes in the interactive lane."""
    if is_single:
        for query in queries:
            text = "" if query.document_id else query.text or ""
            yield query, client.match(text, document_id=query.document_id, **match_options)
        return
    asked: deque[Query] = deque()

    def texts() -> Iterator[str]:
        for query in queries:
            asked.append(query)
            if query.text is not None:
                yield query.text

    for result in client.batch_match(texts(), **match_options):
        yield from _bad_lines(asked)
        query = asked.popleft()
        if result.result is not None:
            yield query, result.result
        else:
            yield query, " ".join(str(result.error).split())
    yield from _bad_lines(asked)


def _bad_lines(asked: deque[Query]) -> Iterator[tuple[Query, str]]:
    """Take the invalid lines from the left."""
    while asked and asked[0].text is None:
        query = asked.popleft()
        yield query, query.problem


def _print_line(query: Query, answer: Answer) -> None:
    print_json(_line(query, answer))


def _print(query: Query, answer: Answer) -> None:
    if isinstance(answer, str):
        name = query.query_id or query.text
        warn(f"textmatch: {one_line(name)}: {answer}" if name else f"textmatch: {answer}")
    else:
        _print_table(answer)


def _print_table(result: MatchResult) -> None:
    table = Table(title=cell(result.query), title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("text", overflow="fold")
    for rank, match in enumerate(result, start=1):
        score = f"{match.score:.3f}"
        if match.explanation:
            score += f"\n{_explained(match, match.explanation)}"
        place = match.document.passage
        where = f"{match.document.id} [{place.start}:{place.end}]" if place else match.document.id
        table.add_row(str(rank), score, cell(where), cell(match.document.text))
    print_table(table)
    if result.degraded:
        print_line(f"Incomplete: {result.degraded}; {result.scored_count} candidates were reranked.")
    if not result.matches:
        print_line("No matches.")
    if result.query_passage_count > 1:
        count = result.query_passage_count
        print_line(f"The query is longer than the model reads: {count} passages of it were matched.")


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
