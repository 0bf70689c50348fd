"""`textmatch evaluate retrieval --tune`: learn from judged queries how a running stack combines scores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.connection import Addresses, find_addresses
from textmatch.cli.failures import CommandFailed
from textmatch.cli.judged_matches import JudgedMatches, ask
from textmatch.cli.judgements import read_judgements, read_queries
from textmatch.cli.output import one_line, print_json, print_line, print_table
from textmatch.cli.progress import StageProgress
from textmatch.cli.stack_index import connected_index
from textmatch.combination import WEIGHTS_NOTE, Weights, to_mapping
from textmatch.index.store import Index
from textmatch.tuning import Tuning, tune

Answer = TypeVar("Answer")

_IDS_PER_CALL = 1_000
_SHOWN_IDS = 5

Directory = Annotated[
    list[str] | None, typer.Argument(metavar="DIR", help="Folder with queries.jsonl and qrels.tsv.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be gained.")]
Force = Annotated[bool, typer.Option("--force", help="Store the weights even if they are not better.")]
Reset = Annotated[bool, typer.Option("--reset", help="Forget tuned weights; the server's hold again.")]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="Leave out judgements of documents that are not stored.")
]
NoRerank = Annotated[bool, typer.Option("--no-rerank", help="For a stack without a cross-encoder.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Decides which queries are held out together.")]


@dataclass(frozen=True)
class Judgements:
    """Judged queries with a relevant document, texts and grades by query id; `left_out` had none."""

    texts: dict[str, str]
    grades: dict[str, dict[str, float]]
    left_out: int

    @classmethod
    def of(cls, directory: Path, texts: Mapping[str, str], grades: Mapping[str, dict[str, float]]) -> Self:
        """The queries that something can be learned from.

        Raises:
            CommandFailed: there are none.
        """
        kept = {query: one for query, one in grades.items() if any(one.values())}
        if not kept:
            raise CommandFailed(f"no query of {directory} has a stored document with a grade above 0")
        return cls({query: texts[query] for query in kept}, kept, len(texts) - len(kept))

    def documents(self) -> list[str]:
        """The ids of all that are judged, each once."""
        return list(dict.fromkeys(document for grades in self.grades.values() for document in grades))


def tune_weights(
    directory: Directory = None,
    dry_run: DryRun = False,
    force: Force = False,
    reset: Reset = False,
    skip_missing: SkipMissing = False,
    no_rerank: NoRerank = False,
    seed: Seed = 0,
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    qdrant_url: options.QdrantUrl = "",
    data_dir: options.DataDir = None,
) -> None:
    """Tune the weights of scores for the running stack's collection, on judged queries about its documents.

    Asks the matcher every query, learns the weights and a calibration, and measures the gain on queries that
    they were not learned from (5-fold cross-validation). Stores them beside the collection if the gain is
    more than two standard errors; matchers use them within ten seconds.

    With --json: {"collection", "queries", "left_out", "ndcg@10": {"before", "after", "gain",
    "standard_error"}, "weights_before", "weights", "is_better", "stored"}; --reset {"collection", "reset"}.
    """
    addresses = find_addresses(data_dir, matcher=matcher, qdrant_url=qdrant_url)
    if reset:
        _reset(addresses, as_json)
        return
    if len(directory or []) != 1:
        raise typer.BadParameter("give the folder with queries and qrels, and nothing else")
    [folder] = map(Path, directory or [])
    collection, judgements = _stored_judgements(addresses, folder, skip_missing)
    matches = _matches(addresses, judgements, collection, is_reranked=not no_rerank)
    tuning = tune(matches.queries, matches.weights, seed)
    is_stored = not dry_run and (tuning.is_better or force)
    if is_stored:
        _run(addresses, lambda index: index.note(collection, {WEIGHTS_NOTE: to_mapping(tuning.weights)}))
    if as_json:
        print_json(_to_json(collection, judgements, matches, tuning, is_stored))
    else:
        _print(judgements, matches, tuning)
        print_line(_outcome(collection, tuning, is_stored))
    if not dry_run and not is_stored:
        raise CommandFailed(
            "not stored: on queries that they were not learned from, the weights are not better beyond"
            " chance; judge more queries, or store them with --force"
        )


def _stored_judgements(addresses: Addresses, folder: Path, skip_missing: bool) -> tuple[str, Judgements]:
    """The collection in use, and what is judged of its documents."""
    texts = read_queries(folder)
    judgements = Judgements.of(folder, texts, read_judgements(folder, texts))
    documents = judgements.documents()
    collection, missing = _run(addresses, lambda index: _collection_and_missing(index, documents))
    if missing and not skip_missing:
        raise CommandFailed(_missing_message(missing, len(documents)))
    stored = {
        query: {document: grade for document, grade in grades.items() if document not in missing}
        for query, grades in judgements.grades.items()
    }
    return collection, Judgements.of(folder, texts, stored)


def _matches(
    addresses: Addresses, judgements: Judgements, collection: str, *, is_reranked: bool
) -> JudgedMatches:
    """The matcher's answers, which must come from this collection."""
    with addresses.client() as client, StageProgress() as progress:
        progress.stage("matching", len(judgements.texts))
        matches = ask(
            client,
            judgements.texts,
            judgements.grades,
            is_reranked=is_reranked,
            on_answer=lambda: progress.advance(1),
        )
    if matches.model_id != collection:
        raise CommandFailed(
            f"the matcher answered from {matches.model_id}, but {collection} is in use at"
            f" {addresses.qdrant_url}; give --matcher and --qdrant-url of one stack, or try again if its"
            " model was changed just now"
        )
    return matches


async def _collection_and_missing(index: Index, documents: Sequence[str]) -> tuple[str, set[str]]:
    """The collection in use, and which of the documents it does not have."""
    collection = await index.refresh_collection()
    if not collection:
        raise CommandFailed("nothing is ingested yet; ingest the documents that the judgements are about")
    missing = set(documents)
    for start in range(0, len(documents), _IDS_PER_CALL):
        missing -= set(await index.points(collection).versions(documents[start : start + _IDS_PER_CALL]))
    return collection, missing


def _missing_message(missing: set[str], judged_count: int) -> str:
    shown = ", ".join(f'"{one_line(document)}"' for document in sorted(missing)[:_SHOWN_IDS])
    return (
        f"{len(missing):,} of {judged_count:,} judged documents are not stored, such as {shown};"
        " ingest them, or leave their judgements out with --skip-missing"
    )


def _reset(addresses: Addresses, as_json: bool) -> None:
    async def forget(index: Index) -> str:
        collection = await index.refresh_collection()
        if not collection:
            raise CommandFailed("there is no collection yet, and so no weights")
        await index.note(collection, {WEIGHTS_NOTE: None})
        return collection

    collection = _run(addresses, forget)
    if as_json:
        print_json({"collection": collection, "reset": True})
    else:
        print_line(f"the weights of the server hold for {collection} again")


def _run(addresses: Addresses, work: Callable[[Index], Awaitable[Answer]]) -> Answer:
    async def connected() -> Answer:
        async with connected_index(addresses) as index:
            return await work(index)

    return asyncio.run(connected())


def _to_json(
    collection: str, judgements: Judgements, matches: JudgedMatches, tuning: Tuning, is_stored: bool
) -> dict[str, Any]:
    return {
        "collection": collection,
        "queries": len(matches.queries),
        "left_out": judgements.left_out,
        "ndcg@10": {
            "before": float(tuning.before.mean()),
            "after": float(tuning.after.mean()),
            "gain": tuning.gain,
            "standard_error": tuning.gain_error if len(tuning.after) > 1 else None,
        },
        "weights_before": to_mapping(matches.weights),
        "weights": to_mapping(tuning.weights),
        "is_better": tuning.is_better,
        "stored": is_stored,
    }


def _print(judgements: Judgements, matches: JudgedMatches, tuning: Tuning) -> None:
    table = Table("", "lexical", "rerank", "calibration", "nDCG@10 of held-out queries")
    for name, weights, ndcg in (
        ("now", matches.weights, tuning.before),
        ("tuned", tuning.weights, tuning.after),
    ):
        table.add_row(
            name, f"{weights.lexical:g}", f"{weights.rerank:g}", _calibration(weights), f"{ndcg.mean():.4f}"
        )
    print_table(table)
    error = f"{tuning.gain_error:.4f}" if len(tuning.after) > 1 else "unknown"
    print_line(
        f"{len(matches.queries):,} queries, gain {tuning.gain:+.4f}, standard error {error};"
        f" {judgements.left_out:,} queries without relevant documents left out"
    )


def _calibration(weights: Weights) -> str:
    if weights.calibration is None:
        return "none"
    return f"slope {weights.calibration.slope:.2f}, intercept {weights.calibration.intercept:.2f}"


def _outcome(collection: str, tuning: Tuning, is_stored: bool) -> str:
    if not is_stored:
        return f"{collection} keeps its weights"
    if tuning.weights.calibration is None:
        return f"stored for {collection}"
    return f"stored for {collection}; scores are probabilities now: choose thresholds such as min_score anew"
