"""`textmatch list`, `get`, `count` and `export`: stored documents."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.errors import CommandFailed
from textmatch.cli.options import find_addresses
from textmatch.client import Document
from textmatch.console import (
    ProgressBars,
    cell,
    json_line,
    print_json,
    print_line,
    print_result,
    print_table,
    warn,
)
from textmatch.io.line_reader import STDIN

Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Ids of documents.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Maximum number of documents.")]
After = Annotated[str, typer.Option("--after", metavar="ID", help="Only documents that come after this one.")]
File = Annotated[str, typer.Argument(metavar="FILE|-", help="The file to write; - for stdout.")]


def list_documents(
    where: options.Where = None,
    after: After = "",
    limit: Limit = 100,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """List stored documents, in an order that never changes.

    --json prints one line per document: {"id", "text", "attributes", "version"}.
    """
    condition = options.parse_where(where)
    with find_addresses(data_dir, matcher=matcher, collection=collection).client() as client:
        found = list(client.list_documents(condition, after=after, limit=limit))
    if as_json:
        for document in found:
            print_json(_to_json(document))
        return
    table = Table("id", "version", "text", "attributes")
    for document in found:
        attributes = json.dumps(dict(document.attributes), ensure_ascii=False) if document.attributes else ""
        table.add_row(cell(document.id), str(document.version), cell(document.text), cell(attributes))
    print_table(table)
    if len(found) == limit:
        warn(f"there may be more; --after {found[-1].id!r} continues")


def get(
    ids: Ids,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Show stored documents. Exits with 1 if one is not stored.

    --json prints one line per document: {"id", "text", "attributes", "version"}.
    """
    with find_addresses(data_dir, matcher=matcher, collection=collection).client() as client:
        found = client.get_documents(ids)
    for document in found.documents:
        if as_json:
            print_json(_to_json(document))
            continue
        for key, value in _to_json(document).items():
            print_line(f"{key}: {value}")
    if found.missing_ids:
        raise CommandFailed(f"not stored: {', '.join(found.missing_ids)}")


def count(
    where: options.Where = None,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Count stored documents. --json prints {"documents"}."""
    condition = options.parse_where(where)
    with find_addresses(data_dir, matcher=matcher, collection=collection).client() as client:
        found = client.count_documents(condition)
    print_result({"documents": found}, f"{found:,}", as_json=as_json)


def export(
    file: File,
    where: options.Where = None,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Write stored documents to a file of JSON lines, which `textmatch ingest` reads, with their versions.

    FILE is replaced when everything is written; after an error it is as before. Two exports of the same
    documents are equal. Queued documents are not stored yet.

    --json prints {"exported": how many documents}.
    """
    condition = options.parse_where(where)
    addresses = find_addresses(data_dir, matcher=matcher, collection=collection)
    with addresses.client() as client, ProgressBars(is_shown=file != STDIN) as bars:
        bars.stage("export", client.count_documents(condition), unit="documents")
        with closing(client.list_documents(condition)) as documents:
            if file == STDIN:
                exported = _write(documents, sys.stdout, bars)
            else:
                exported = _write_file(Path(file), documents, bars)
    if file != STDIN:
        line = f"exported {exported:,} documents to {file}"
        print_result({"exported": exported}, line, as_json=as_json)


def _write_file(file: Path, documents: Iterable[Document], bars: ProgressBars) -> int:
    """Write a file that is complete or not there. A pipe or a device, such as /dev/null, stays what it is.

    Raises:
        CommandFailed: it cannot be written.
    """
    try:
        if not file.exists() or file.is_file():
            return _replace(file, documents, bars)
        # A directory cannot be opened.
        with file.open("w", encoding="utf-8", newline="\n") as stream:
            return _write(documents, stream, bars)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from error


def _replace(file: Path, documents: Iterable[Document], bars: ProgressBars) -> int:
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as stream:
            exported = _write(documents, stream, bars)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    finally:
        if unfinished.parent.is_dir():
            unfinished.unlink(missing_ok=True)
    return exported


def _write(documents: Iterable[Document], stream: Any, bars: ProgressBars) -> int:
    exported = 0
    for document in documents:
        stream.write(json_line(_to_json(document)))
        exported += 1
        bars.advance()
    return exported


def _to_json(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "text": document.text,
        "attributes": dict(document.attributes),
        "version": document.version,
    }
