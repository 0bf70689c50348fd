"""`textmatch tune`: learn the weights of scores from judged queries, for the collection in use.

The matcher answers every judged query and explains the score of every candidate. textmatch.weight_tuning
learns from these explanations and from the grades of the candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import typer
from rich.table import Table

from textmatch import weight_tuning
from textmatch.cli import options
from textmatch.cli.errors import CommandFailed
from textmatch.cli.options import Addresses, find_addresses
from textmatch.client import (
    BatchMatchResult,
    DegradedReason,
    Match,
    MatchKeywords,
    MatchResult,
    ScoreExplanation,
    TextMatchClient,
)
from textmatch.console import ProgressBars, one_line, print_json, print_line, print_result, print_table
from textmatch.io.qrels import read_judgements, read_queries
from textmatch.score_fusion import WEIGHTS_NOTE, ScoreCalibration, Weights, to_mapping
from textmatch.weight_tuning import JudgedCandidates, Tuning

Directory = Annotated[
    Path | None, typer.Argument(metavar="DIRECTORY", help="Folder with queries.jsonl and qrels.tsv.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the gain and store nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Store the weights even if they are not better.")]
Reset = Annotated[bool, typer.Option("--reset", help="Delete tuned weights; the server's apply again.")]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="Ignore judgements of documents that are not stored.")
]
NoRerank = Annotated[bool, typer.Option("--no-rerank", help="For a stack without a cross-encoder.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the split for cross-validation.")]

# More than a match usually reranks: other weights may prefer other candidates.
_CANDIDATES = 100
# With 100 candidates each that makes 1,000 pairs per call, which even a slow encoder scores in time.
_QUERIES_PER_CALL = 10
_IDS_PER_CALL = 1_000
_SHOWN_IDS = 5


def tune(
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
    """Learn the weights of scores from judged queries about stored documents.

    Sends every query to the matcher, learns weights and a calibration, and measures the gain in nDCG@10
    by 5-fold cross-validation. Stores the weights if the gain is more than two standard errors, and fails
    if not. Matchers use new weights within ten seconds.

    --json prints {"collection", "queries", "left_out", "ndcg@10": {"before", "after", "gain",
    "standard_error"}, "weights_before", "weights", "is_better", "stored"}; with --reset {"collection",
    "reset"}.
    """
    addresses = find_addresses(data_dir, matcher=matcher, qdrant_url=qdrant_url)
    if reset:
        collection = asyncio.run(_reset(addresses))
        line = f"the weights of the server apply to {collection} again"
        print_result({"collection": collection, "reset": True}, line, as_json=as_json)
        return
    if directory is None:
        raise typer.BadParameter("give DIRECTORY or --reset")
    collection, judgements = _stored_judgements(addresses, directory, skip_missing=skip_missing)
    queries, weights = _ask_all(addresses, judgements, collection, is_reranked=not no_rerank)
    tuning = weight_tuning.tune(queries, weights, seed)
    is_stored = not dry_run and (tuning.is_better or force)
    if is_stored:
        asyncio.run(_store(addresses, collection, tuning.weights))
    if as_json:
        print_json(_to_json(collection, judgements, weights, tuning, is_stored))
    else:
        _print(collection, judgements, weights, tuning, is_stored)
    if not dry_run and not is_stored:
        raise CommandFailed(
            "not stored: the weights are not better beyond chance on queries that they were not learned from;"
            " judge more queries, or store the weights with --force"
        )


@dataclass(frozen=True)
class Judgements:
    """Judged queries with a relevant document: texts and grades by query id. `left_out` queries have none."""

    texts: dict[str, str]
    grades: dict[str, dict[str, float]]
    left_out: int

    @classmethod
    def of(cls, directory: Path, texts: Mapping[str, str], grades: Mapping[str, dict[str, float]]) -> Self:
        """Keep the queries that have a relevant document.

        Raises:
            CommandFailed: no query has one.
        """
        kept = {query: one for query, one in grades.items() if any(one.values())}
        if not kept:
            raise CommandFailed(f"no query of {directory} has a stored document with a grade above 0")
        return cls({query: texts[query] for query in kept}, kept, len(texts) - len(kept))


def _stored_judgements(
    addresses: Addresses, directory: Path, *, skip_missing: bool
) -> tuple[str, Judgements]:
    """The collection in use, and the judgements of its documents."""
    texts = read_queries(directory)
    judgements = Judgements.of(directory, texts, read_judgements(directory, texts))
    documents = list(dict.fromkeys(document for one in judgements.grades.values() for document in one))
    collection, missing = asyncio.run(_collection_and_missing(addresses, documents))
    if missing and not skip_missing:
        shown = ", ".join(f'"{one_line(document)}"' for document in sorted(missing)[:_SHOWN_IDS])
        raise CommandFailed(
            f"{len(missing):,} of {len(documents):,} judged documents are not stored, such as {shown};"
            " ingest them, or ignore their judgements with --skip-missing"
        )
    stored = {
        query: {document: grade for document, grade in grades.items() if document not in missing}
        for query, grades in judgements.grades.items()
    }
    return collection, Judgements.of(directory, texts, stored)


async def _collection_and_missing(addresses: Addresses, documents: Sequence[str]) -> tuple[str, set[str]]:
    """The collection in use, and the documents that are not in it."""
    async with addresses.index() as index:
        collection = await index.refresh_collection()
        if not collection:
            raise CommandFailed("nothing is stored yet; ingest the documents of the judgements first")
        missing = set(documents)
        for start in range(0, len(documents), _IDS_PER_CALL):
            missing -= set(await index.points(collection).versions(documents[start : start + _IDS_PER_CALL]))
        return collection, missing


async def _store(addresses: Addresses, collection: str, weights: Weights) -> None:
    async with addresses.index() as index:
        await index.collections.note(collection, {WEIGHTS_NOTE: to_mapping(weights)})


async def _reset(addresses: Addresses) -> str:
    """Delete the weights of the collection in use; returns its name."""
    async with addresses.index() as index:
        collection = await index.refresh_collection()
        if not collection:
            raise CommandFailed("there is no collection yet")
        await index.collections.note(collection, {WEIGHTS_NOTE: None})
        return collection


def _ask_all(
    addresses: Addresses, judgements: Judgements, collection: str, *, is_reranked: bool
) -> tuple[list[JudgedCandidates], Weights]:
    """The candidates that the matcher finds for each query, and the weights that it uses.

    Raises:
        CommandFailed: nothing is found, an answer is incomplete, or it comes from another collection.
        TextMatchError: a query failed.
    """
    texts = judgements.texts
    with addresses.client() as client, ProgressBars() as progress:
        progress.stage("matching", len(texts), unit="queries")
        depth = _depth(client, next(iter(texts.values()))) if is_reranked else None
        answers: dict[str, MatchResult] = {}
        for query, result in _answers(client, texts, is_reranked=is_reranked):
            answers[query] = result
            progress.advance()
    found = next((result for result in answers.values() if result.matches), None)
    if found is None:
        raise CommandFailed("the matcher finds nothing for any of the queries")
    if found.bi_encoder_model_id != collection:
        raise CommandFailed(
            f"the matcher answered from {found.bi_encoder_model_id}, but {collection} is in use at"
            f" {addresses.qdrant_url}; give --matcher and --qdrant-url of the same stack, or try again if the"
            " model was just changed"
        )
    # In the order of the file: the same judgements give the same weights.
    queries = [_judged(answers[query], judgements.grades[query], depth) for query in texts]
    return queries, _weights(found.matches[0])


def _answers(
    client: TextMatchClient, texts: Mapping[str, str], *, is_reranked: bool
) -> Iterator[tuple[str, MatchResult]]:
    """The id of each query with its answer, at bulk priority."""
    match_options = MatchKeywords(
        top_k=_CANDIDATES, rerank=is_reranked, explain=True, omit_text=True, omit_attributes=True
    )
    queries = list(texts)
    for start in range(0, len(queries), _QUERIES_PER_CALL):
        chunk = queries[start : start + _QUERIES_PER_CALL]
        for answer in client.batch_match([texts[query] for query in chunk], **match_options):
            yield chunk[answer.query_index], _complete(answer)


def _depth(client: TextMatchClient, text: str) -> int | None:
    """How many candidates the matcher reranks by default; None: all."""
    [answer] = client.batch_match([text])
    result = _complete(answer)
    return result.scored_count if result.scored_count < result.candidate_count else None


def _complete(answer: BatchMatchResult) -> MatchResult:
    result = answer.result
    if result is None:
        raise answer.error or CommandFailed("a query has no answer")
    if result.degraded is None:
        return result
    hint = (
        "; for a stack without a cross-encoder give --no-rerank"
        if result.degraded is DegradedReason.RERANK_UNAVAILABLE
        else ""
    )
    raise CommandFailed(f'the answer to "{one_line(result.query)}" is incomplete: {result.degraded}{hint}')


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
        raise CommandFailed("the matcher does not explain its scores; it may be older than this command")
    return match.explanation


def _weights(match: Match) -> Weights:
    explanation = _explanation(match)
    calibration = ScoreCalibration(*explanation.calibration) if explanation.calibration else None
    # The message has 32-bit floats.
    lexical, rerank = round(explanation.lexical_weight, 6), round(explanation.rerank_weight, 6)
    return Weights(lexical, rerank, calibration)


def _to_json(
    collection: str, judgements: Judgements, weights: Weights, tuning: Tuning, is_stored: bool
) -> dict[str, Any]:
    return {
        "collection": collection,
        "queries": len(judgements.texts),
        "left_out": judgements.left_out,
        "ndcg@10": {
            "before": float(tuning.before.mean()),
            "after": float(tuning.after.mean()),
            "gain": tuning.gain,
            "standard_error": tuning.gain_error if len(tuning.after) > 1 else None,
        },
        "weights_before": to_mapping(weights),
        "weights": to_mapping(tuning.weights),
        "is_better": tuning.is_better,
        "stored": is_stored,
    }


def _print(
    collection: str, judgements: Judgements, weights: Weights, tuning: Tuning, is_stored: bool
) -> None:
    table = Table("weights", "lexical", "rerank", "calibration", "nDCG@10 of held-out queries")
    for name, one, ndcg in (("now", weights, tuning.before), ("tuned", tuning.weights, tuning.after)):
        table.add_row(name, f"{one.lexical:g}", f"{one.rerank:g}", _calibration(one), f"{ndcg.mean():.4f}")
    print_table(table)
    error = f"{tuning.gain_error:.4f}" if len(tuning.after) > 1 else "unknown"
    print_line(
        f"{len(judgements.texts):,} queries, gain {tuning.gain:+.4f}, standard error {error};"
        f" {judgements.left_out:,} queries without relevant documents left out"
    )
    if not is_stored:
        print_line(f"{collection} keeps its weights")
    elif tuning.weights.calibration is None:
        print_line(f"stored for {collection}")
    else:
        print_line(
            f"stored for {collection}; scores are now probabilities: adapt your thresholds (min_score)"
        )


def _calibration(weights: Weights) -> str:
    if weights.calibration is None:
        return "none"
    return f"slope {weights.calibration.slope:.2f}, intercept {weights.calibration.intercept:.2f}"
