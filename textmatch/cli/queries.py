"""Queries from a file: one a line, or an id, a tab and the query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from textmatch.cli.failures import CommandFailed
from textmatch.cli.lines import UnreadableLine, file_name, opened, read_lines
from textmatch.documents import text_violation


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
