"""`textmatch tune`: fit the score models of the collection in use to judged queries.

The matcher answers every judged query and explains the score of every candidate. textmatch.weight_tuning
fits the models to these explanations and the grades of the candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Self

import numpy as np
import typer
from numpy.typing import NDArray
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
from textmatch.ranking_metrics import Values
from textmatch.score_fusion import FUSION_NOTE, NEVER, Fusion, default_fusion, fusion_of, to_mapping
from textmatch.weight_tuning import JudgedCandidates, Quality, Tuning, pairs_scored, standard_error

Directory = Annotated[
    Path | None, typer.Argument(metavar="DIRECTORY", help="Folder with queries.jsonl and qrels.tsv.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the gain and store nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Store the models even if they are not better.")]
Reset = Annotated[bool, typer.Option("--reset", help="Delete tuned models; the default ones apply again.")]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="Ignore judgements of documents that are not stored.")
]
NoRerank = Annotated[bool, typer.Option("--no-rerank", help="For a stack without a cross-encoder.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the split for cross-validation.")]

# More than a match usually scores: other weights may prefer other candidates.
_CANDIDATES = 100
# With 100 candidates each that makes 1,000 pairs per call, which even a slow encoder scores in time.
_QUERIES_PER_CALL = 10
_IDS_PER_CALL = 1_000
_SHOWN_IDS = 5
# For the time that pair scores cost.
_TIMED_QUERIES = 20


def tune(
    directory: Directory = None,
    dry_run: DryRun = False,
    force: Force = False,
    reset: Reset = False,
    skip_missing: SkipMissing = False,
    no_rerank: NoRerank = False,
    seed: Seed = 0,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    qdrant_url: options.QdrantUrl = "",
    redis_url: options.RedisUrl = "",
    data_dir: options.DataDir = None,
) -> None:
    """Fit the models of scores to judged queries about stored documents.

    Sends every query to the matcher, fits a model for each set of parts, and measures them by 5-fold
    cross-validation. Stores the models if the log loss falls by more than two standard errors and nDCG@10
    does not fall, and fails if not. Matchers use new models within ten seconds.

    --json prints {"collection", "model_id", "queries", "left_out", "ndcg@10": {"before", "after", "gain",
    "standard_error"}, "log_loss": {the same}, "parts": {SET: {"ndcg@10": {"before", "after"}, "log_loss",
    "calibration_error"}}, "pair_score": {"ndcg@10_gain", "pairs_per_query", "ms_per_pair"},
    "models_before", "models", "is_better", "stored"}; "pair_score" is null without a cross-encoder. With
    --reset it prints {"collection", "model_id", "reset"}.
    """
    addresses = find_addresses(
        data_dir, matcher=matcher, qdrant_url=qdrant_url, redis_url=redis_url, collection=collection
    )
    if reset:
        model_id = asyncio.run(_reset(addresses))
        line = f"the default models apply to {addresses.collection} again"
        done = {"collection": addresses.collection, "model_id": model_id, "reset": True}
        print_result(done, line, as_json=as_json)
        return
    if directory is None:
        raise typer.BadParameter("give DIRECTORY or --reset")
    model_id, judgements = _stored_judgements(addresses, directory, skip_missing=skip_missing)
    present = asyncio.run(_present(addresses, model_id))
    queries, pair_ms = _ask_all(addresses, judgements, model_id, is_reranked=not no_rerank)
    tuning = weight_tuning.tune(queries, present, default_fusion(model_id), seed)
    is_stored = not dry_run and (tuning.is_better or force)
    if is_stored:
        asyncio.run(_store(addresses, model_id, tuning.fusion))
    pair_count = float(np.mean([pairs_scored(query, tuning.fusion).sum() for query in queries]))
    report = _Report(
        addresses.collection, model_id, judgements, present, tuning, pair_count, pair_ms, is_stored
    )
    if as_json:
        print_json(report.to_json())
    else:
        report.print()
    if not dry_run and not is_stored:
        raise CommandFailed(
            "not stored: the models are not better beyond chance on queries that they were not fitted to;"
            " judge more queries, or store the models with --force"
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
    """The model in use, and the judgements of stored documents."""
    texts = read_queries(directory)
    judgements = Judgements.of(directory, texts, read_judgements(directory, texts))
    documents = list(dict.fromkeys(document for one in judgements.grades.values() for document in one))
    model_id, missing = asyncio.run(_model_and_missing(addresses, documents))
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
    return model_id, Judgements.of(directory, texts, stored)


async def _model_and_missing(addresses: Addresses, documents: Sequence[str]) -> tuple[str, set[str]]:
    """The model in use, and the documents that are not stored."""
    async with addresses.opened_collection() as collection:
        index = collection.index
        model_id = await index.refresh_model_in_use()
        if not model_id:
            raise CommandFailed("nothing is stored yet; ingest the documents of the judgements first")
        missing = set(documents)
        for start in range(0, len(documents), _IDS_PER_CALL):
            missing -= set(await index.points(model_id).versions(documents[start : start + _IDS_PER_CALL]))
        return model_id, missing


async def _present(addresses: Addresses, model_id: str) -> Fusion:
    """The score models that matchers use for the collection."""
    async with addresses.opened_collection() as collection:
        return fusion_of((await collection.index.collections.info(model_id)).notes, model_id)


async def _store(addresses: Addresses, model_id: str, fusion: Fusion) -> None:
    async with addresses.opened_collection() as collection:
        await collection.index.collections.note(model_id, {FUSION_NOTE: to_mapping(fusion)})


async def _reset(addresses: Addresses) -> str:
    """Delete the tuned score models of the bi-encoder in use; returns its id."""
    async with addresses.opened_collection() as collection:
        model_id = await collection.index.refresh_model_in_use()
        if not model_id:
            raise CommandFailed("nothing is stored yet")
        await collection.index.collections.note(model_id, {FUSION_NOTE: None})
        return model_id


def _ask_all(
    addresses: Addresses, judgements: Judgements, model_id: str, *, is_reranked: bool
) -> tuple[list[JudgedCandidates], float]:
    """The candidates that the matcher finds for each query, and the median time of scoring a pair in ms.

    Raises:
        CommandFailed: nothing is found, an answer is incomplete, or it comes from another model.
        TextMatchError: a query failed.
    """
    texts = judgements.texts
    with addresses.client() as client, ProgressBars() as progress:
        progress.stage("matching", len(texts), unit="queries")
        pair_ms = _pair_ms(client, list(texts.values())) if is_reranked else 0.0
        answers: dict[str, MatchResult] = {}
        for query, result in _answers(client, texts, is_reranked=is_reranked):
            answers[query] = result
            progress.advance()
    found = next((result for result in answers.values() if result.matches), None)
    if found is None:
        raise CommandFailed("the matcher finds nothing for any of the queries")
    if found.bi_encoder_model_id != model_id:
        raise CommandFailed(
            f"the matcher answered from {found.bi_encoder_model_id}, but {model_id} is in use at"
            f" {addresses.qdrant_url}; give --matcher and --qdrant-url of the same stack, or try again if the"
            " model was just changed"
        )
    # In the order of the file: the same judgements give the same models.
    return [judged_candidates(answers[query], judgements.grades[query]) for query in texts], pair_ms


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


def _pair_ms(client: TextMatchClient, texts: Sequence[str]) -> float:
    """The median time of scoring one pair of a query, in ms."""
    results = [_complete(answer) for answer in client.batch_match(texts[:_TIMED_QUERIES], rerank=True)]
    return median(result.timings.rerank_ms / max(result.scored_count, 1) for result in results)


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


def judged_candidates(result: MatchResult, grades: Mapping[str, float]) -> JudgedCandidates:
    """The candidates of an explained answer, with the grades of the judged documents by id."""
    found = {match.document.id for match in result}
    explanations = [_explanation(match) for match in result]
    return JudgedCandidates(
        cosine=_column(one.cosine for one in explanations),
        lexical=_column(one.lexical for one in explanations),
        pair=_column(match.rerank_score for match in result),
        grades=np.array([grades.get(match.document.id, 0.0) for match in result]),
        missed_grades=np.array([grade for document, grade in grades.items() if document not in found]),
    )


def _column(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _explanation(match: Match) -> ScoreExplanation:
    if match.explanation is None:
        raise CommandFailed("the matcher does not explain its scores; it may be older than this command")
    return match.explanation


@dataclass(frozen=True)
class _Report:
    """What the command found.

    Attributes:
        pair_count: how many pairs of a query a match scores, with the fitted models.
        pair_ms: the time of scoring one pair.
    """

    collection: str
    model_id: str
    judgements: Judgements
    present: Fusion
    tuning: Tuning
    pair_count: float
    pair_ms: float
    is_stored: bool

    @property
    def pair_gain(self) -> float | None:
        """What the pair score adds to nDCG@10 on held-out queries; None without one."""
        with_pair, after = self.tuning.parts, self.tuning.after
        if not with_pair.endswith("_pair"):
            return None
        return float((after[with_pair].ndcg - after[with_pair.removesuffix("_pair")].ndcg).mean())

    def to_json(self) -> dict[str, Any]:
        tuning = self.tuning
        before, after = tuning.before[tuning.parts], tuning.after[tuning.parts]
        gain = self.pair_gain
        return {
            "collection": self.collection,
            "model_id": self.model_id,
            "queries": len(self.judgements.texts),
            "left_out": self.judgements.left_out,
            "ndcg@10": _change(before.ndcg, after.ndcg, tuning.ndcg_gains),
            "log_loss": _change(before.log_loss, after.log_loss, tuning.log_loss_gains),
            "parts": {name: _both(tuning.before[name], tuning.after[name]) for name in tuning.after},
            "pair_score": None
            if gain is None
            else {
                "ndcg@10_gain": gain,
                "pairs_per_query": self.pair_count,
                "ms_per_pair": self.pair_ms,
            },
            "models_before": to_mapping(self.present),
            "models": to_mapping(tuning.fusion),
            "is_better": tuning.is_better,
            "stored": self.is_stored,
        }

    def print(self) -> None:
        tuning = self.tuning
        table = Table(
            "parts", "nDCG@10", "log loss", "calibration error", title="held-out queries: now, tuned"
        )
        for name in tuning.after:
            columns = _both(tuning.before[name], tuning.after[name]).values()
            shown = (f"{one['before']:.4f}  {one['after']:.4f}" for one in columns)
            table.add_row(name.replace("_", " + "), *shown)
        print_table(table)
        gains = tuning.log_loss_gains
        print_line(
            f"{len(self.judgements.texts):,} queries; log loss falls by {gains.mean():.4f}, standard error"
            f" {standard_error(gains):.4f}; {self.judgements.left_out:,} queries without relevant documents"
            " left out"
        )
        if self.pair_gain is not None:
            print_line(_pair_line(tuning.fusion))
            print_line(
                f"the cross-encoder adds {self.pair_gain:+.4f} nDCG@10 for {self.pair_count:.1f} pairs,"
                f" {self.pair_count * self.pair_ms:.0f} ms a query"
            )
        print_line(
            f"stored for {self.collection}; adapt your thresholds (min_score)"
            if self.is_stored
            else f"{self.collection} keeps its models"
        )


def _pair_line(fusion: Fusion) -> str:
    if fusion.pair_from >= NEVER:
        return "pairs are not scored for the ranking, because that gains nothing"
    return (
        f"pairs are scored from a cosine of {fusion.pair_from:.2f} on, for the first {fusion.pair_depth}"
        " candidates"
    )


def _change(before: Values, after: Values, gains: Values) -> dict[str, float | None]:
    return {
        "before": float(np.nanmean(before)),
        "after": float(np.nanmean(after)),
        "gain": float(gains.mean()),
        "standard_error": standard_error(gains) if len(gains) > 1 else None,
    }


def _both(before: Quality, after: Quality) -> dict[str, dict[str, float]]:
    return {
        "ndcg@10": {"before": float(before.ndcg.mean()), "after": float(after.ndcg.mean())},
        "log_loss": {
            "before": float(np.nanmean(before.log_loss)),
            "after": float(np.nanmean(after.log_loss)),
        },
        "calibration_error": {"before": before.calibration_error, "after": after.calibration_error},
    }
