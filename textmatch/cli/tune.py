"""`textmatch evaluate retrieval --tune`: learn from judged queries how a running stack combines scores.

Asking a matcher judged queries: every part of every candidate's score, with its grade.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import numpy as np
import typer
from rich.table import Table

from textmatch.cli import options
from textmatch.cli.connection import Addresses, find_addresses
from textmatch.cli.progress import StageProgress
from textmatch.cli.stack_index import connected_index
from textmatch.client import (
    BatchMatchResult,
    DegradedReason,
    Match,
    MatchOptions,
    MatchResult,
    ScoreExplanation,
    TextMatchClient,
)
from textmatch.console import one_line, print_json, print_line, print_table
from textmatch.index.index import Index
from textmatch.io.line_reader import CommandFailed
from textmatch.io.qrels import read_judgements, read_queries
from textmatch.score_fusion import WEIGHTS_NOTE, Calibration, Weights, to_mapping
from textmatch.weight_tuning import JudgedCandidates, Tuning, tune

# So many are scored, so that weights can be tried that prefer other candidates than those in use.
_CANDIDATES = 100
# A thousand pairs, which even a slow encoder scores within the time of one call.
_QUERIES_PER_CALL = 10


@dataclass(frozen=True)
class JudgedMatches:
    """Answers to judged queries, the weights they were made with, and the bi-encoder that found them."""

    queries: list[JudgedCandidates]
    weights: Weights
    model_id: str


def ask(
    client: TextMatchClient,
    texts: Mapping[str, str],
    grades: Mapping[str, Mapping[str, float]],
    *,
    is_reranked: bool,
    on_answer: Callable[[], None],
) -> JudgedMatches:
    """Ask every query in the bulk lane.

    Args:
        texts: by query id.
        grades: by query id, the grades of documents by their id.
        is_reranked: whether the stack has a cross-encoder.
        on_answer: called for every answer.

    Raises:
        CommandFailed: nothing is found, or an answer is not complete.
        TextMatchError: a query failed.
    """
    depth = _depth(client, next(iter(texts.values()))) if is_reranked else None
    answers: dict[str, MatchResult] = {}
    for name, result in _answers(client, texts, is_reranked):
        answers[name] = result
        on_answer()
    found = next((result for result in answers.values() if result.matches), None)
    if found is None:
        raise CommandFailed("the matcher finds nothing for any of the queries")
    # In the order of the file, so that the same judgements give the same weights.
    queries = [_judged(answers[name], grades[name], depth) for name in texts]
    return JudgedMatches(queries, _weights(found.matches[0]), found.bi_encoder_model_id)


def _answers(
    client: TextMatchClient, texts: Mapping[str, str], is_reranked: bool
) -> Iterator[tuple[str, MatchResult]]:
    """Each query's id with its answer, which is complete."""
    options = MatchOptions(
        top_k=_CANDIDATES, rerank=is_reranked, explain=True, omit_text=True, omit_attributes=True
    )
    names = list(texts)
    for start in range(0, len(names), _QUERIES_PER_CALL):
        chunk = names[start : start + _QUERIES_PER_CALL]
        for answer in client.batch_match([texts[name] for name in chunk], **options):
            yield chunk[answer.query_index], _complete(answer)


def _depth(client: TextMatchClient, query: str) -> int | None:
    """How many candidates the matcher scores when nobody says how many; None if all."""
    [answer] = client.batch_match([query])
    result = _complete(answer)
    return result.scored_count if result.scored_count < result.candidate_count else None


def _complete(answer: BatchMatchResult) -> MatchResult:
    result = answer.result
    if result is None:
        raise answer.error or CommandFailed("a query has no answer")
    if result.degraded is None:
        return result
    hint = (
        "; for a stack without a cross-encoder there is --no-rerank"
        if result.degraded is DegradedReason.RERANK_UNAVAILABLE
        else ""
    )
    raise CommandFailed(
        f'nothing can be learned from the answer to "{one_line(result.query)}", which is incomplete:'
        f" {result.degraded}{hint}"
    )


def _judged(result: MatchResult, grades: Mapping[str, float], depth: int | None) -> JudgedCandidates:
    found = {match.document.id for match in result}
    explanations = [_explanation(match) for match in result]
    scores = [match.rerank_score for match in result]
    return JudgedCandidates(
        cosine=np.array([one.cosine for one in explanations]),
        bm25=np.array([one.bm25 or 0.0 for one in explanations]),
        cross_encoder=np.array([np.nan if score is None else score for score in scores]),
        grades=np.array([grades.get(match.document.id, 0.0) for match in result]),
        missed_grades=np.array([grade for document, grade in grades.items() if document not in found]),
        depth=depth,
    )


def _explanation(match: Match) -> ScoreExplanation:
    if match.explanation is None:
        raise CommandFailed("the matcher does not explain its scores; is it older than this command?")
    return match.explanation


def _weights(match: Match) -> Weights:
    explanation = _explanation(match)
    calibration = Calibration(*explanation.calibration) if explanation.calibration else None
    # They come as 32 bits.
    lexical, rerank = round(explanation.lexical_weight, 6), round(explanation.rerank_weight, 6)
    return Weights(lexical, rerank, calibration)


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
