"""Create, list, delete or adopt collections."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.options import find_addresses
from textmatch.client import CollectionConfig, CollectionSummary, PayloadIndex
from textmatch.collection_config import DEFAULT_PASSAGE_TOKENS
from textmatch.console import cell, print_json, print_line, print_result, print_table

app = typer.Typer(help=__doc__, add_completion=False)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the collection.")]
BiEncoder = Annotated[
    str,
    typer.Option("--bi-encoder", metavar="MODEL", help="Name or id of a served bi-encoder."),
]
CrossEncoder = Annotated[
    str,
    typer.Option("--cross-encoder", metavar="MODEL", help="Name or id of a served cross-encoder."),
]
Lexical = Annotated[bool, typer.Option("--lexical/--no-lexical", help="Whether there is a BM25 index.")]
Indexes = Annotated[
    list[str] | None,
    typer.Option(
        "--index",
        metavar="FIELD:KIND",
        help="Attribute on which filters are fast; keyword[:tenant], integer, float, bool or datetime.",
    ),
]
PassageTokens = Annotated[
    int,
    typer.Option(
        "--passage-tokens",
        metavar="N",
        help="Longer texts are divided into passages of at most so many tokens, or as many as the model reads"
        " if that is less. 0: texts are not divided.",
    ),
]
PassageOverlap = Annotated[
    int,
    typer.Option(
        "--passage-overlap",
        metavar="N",
        help="Most tokens of a passage, its last sentences, that begin the next.",
    ),
]


@app.command()
def create(
    name: Name,
    bi_encoder: BiEncoder = "",
    cross_encoder: CrossEncoder = "",
    lexical: Lexical = True,
    indexes: Indexes = None,
    passage_tokens: PassageTokens = DEFAULT_PASSAGE_TOKENS,
    passage_overlap: PassageOverlap = 0,
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Create a collection. Creating one that exists with the same settings succeeds.

    --json prints {"name", "bi_encoder", "cross_encoder", "lexical", "indexes", "passage_tokens",
    "passage_overlap", "model_id", "documents", "created_at"}.
    """
    payload_indexes = tuple(PayloadIndex.parse(text) for text in indexes or [])
    settings = CollectionConfig(
        name=name,
        bi_encoder=bi_encoder,
        cross_encoder=cross_encoder,
        lexical=lexical,
        payload_indexes=payload_indexes,
        passage_tokens=passage_tokens,
        passage_overlap=passage_overlap,
    )
    with find_addresses(data_dir, matcher=matcher).client() as client:
        summary = client.create_collection(settings)
    print_result(_to_json(summary), f"{name} is there, with {summary.model_id}", as_json=as_json)


@app.command("list")
def list_all(
    as_json: options.Json = False, matcher: options.Matcher = "", data_dir: options.DataDir = None
) -> None:
    """List collections. --json prints one line for each, as `create` does."""
    with find_addresses(data_dir, matcher=matcher).client() as client:
        summaries = list(client.list_collections())
    if as_json:
        for summary in summaries:
            print_json(_to_json(summary))
        return
    table = Table("collection", "documents", "model", "BM25", "indexes")
    for summary in summaries:
        config = summary.config
        table.add_row(
            cell(config.name),
            f"{summary.document_count:,}",
            summary.model_id or "none yet",
            "yes" if config.lexical else "no",
            cell(", ".join(map(_index, config.payload_indexes))),
        )
    print_table(table)


@app.command()
def get(
    name: Name,
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Show a collection. --json prints what `create` prints."""
    with find_addresses(data_dir, matcher=matcher).client() as client:
        shown = _to_json(client.get_collection(name))
    if as_json:
        print_json(shown)
        return
    for key, value in shown.items():
        print_line(f"{key}: {value}")


@app.command()
def delete(
    name: Name,
    yes: options.Yes = False,
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Delete a collection with all its documents, queued ones too.

    --json prints {"deleted": its name, "documents"}.
    """
    with find_addresses(data_dir, matcher=matcher).client() as client:
        count = client.get_collection(name).document_count
        if not yes:
            options.confirm(f"Delete {name} with {count:,} documents?")
        client.delete_collection(name)
    print_result({"deleted": name, "documents": count}, f"deleted {name}", as_json=as_json)


@app.command()
def adopt(
    name: Name,
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Take over a collection that another installation made in the same Qdrant.

    Also for a collection of this installation after its Redis was lost. --json prints what `create` prints.
    """
    with find_addresses(data_dir, matcher=matcher).client() as client:
        summary = client.adopt_collection(name)
    line = f"adopted {name} with {summary.document_count:,} documents"
    print_result(_to_json(summary), line, as_json=as_json)


def _to_json(summary: CollectionSummary) -> dict[str, Any]:
    config = summary.config
    return {
        "name": config.name,
        "bi_encoder": config.bi_encoder or None,
        "cross_encoder": config.cross_encoder or None,
        "lexical": config.lexical,
        "indexes": [_index(one) for one in config.payload_indexes],
        "passage_tokens": config.passage_tokens,
        "passage_overlap": config.passage_overlap,
        "model_id": summary.model_id or None,
        "documents": summary.document_count,
        "created_at": config.created_at or None,
    }


def _index(index: PayloadIndex) -> str:
    return f"{index.field}:{index.kind}{':tenant' if index.is_tenant else ''}"
