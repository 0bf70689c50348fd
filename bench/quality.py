"""The ranking quality of Match, stage by stage, in the whole stack: `python -m bench.quality --data DIR`.

DIR holds data sets, each a folder with corpus.jsonl, queries.jsonl and qrels.tsv; `cranfield-en` is used. The
demo's questions are built in. A missing data set is left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bench.report import JsonFile, print_table, write_figures
from bench.servers import running_stack
from services.matcher.settings import MatcherSettings
from standalone.demo.corpus import EVERYDAY, HARD, build_corpus, read_questions
from textmatch.client import Match, MatchKeywords, Recall, TextMatchClient
from textmatch.errors import TextMatchError
from textmatch.ranking_metrics import retrieval_metrics
from training.evaluation.bootstrap import Values
from training.evaluation.retrieval import RetrievalSet, read_retrieval_set

_DEPTH = 100
# The number of candidates that the default settings score with the cross-encoder.
_SCORED = MatcherSettings().rerank_depth
# Enough candidates to include the best ones of each single stage.
_WIDE = 500
_QUICK_QUERIES = 20
_BULK_SECONDS = 1_800.0
_DEADLINES_MS = (20, 50, 100, 300, 1_000)
_DEADLINE_CALLERS = 4

MODES: dict[str, MatchKeywords] = {
    "dense": {"recall": Recall.DENSE, "rerank": False},
    "hybrid": {"recall": Recall.HYBRID, "rerank": False},
    "hybrid_rrf": {"recall": Recall.HYBRID_RRF, "rerank": False},
    "dense_cross_encoder": {"recall": Recall.DENSE},
    # The default: the best recall available, then the cross-encoder on the best candidates.
    "cascade": {},
}


def main(
    data: Annotated[
        Path | None, typer.Option(envvar="TEXTMATCH_BENCH_DATA", help="Folder of data sets.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few queries of each set.")] = False,
    json_path: JsonFile = None,
) -> None:
    """Measure nDCG@10, MRR@10 and recall@100 of each set in each mode."""
    figures: dict[str, float] = {}
    for group in _groups(data):
        with tempfile.TemporaryDirectory() as directory, running_stack(Path(directory)) as stack:
            address = stack.addresses["matcher"]
            _ingest(address, next(iter(group.values())))
            for name, collection in group.items():
                figures |= _measure_set(address, name, collection, _QUICK_QUERIES if quick else None)
    write_figures(figures, json_path)


def _groups(data: Path | None) -> Iterator[dict[str, RetrievalSet]]:
    """Sets of queries by name, in groups that share their documents."""
    cranfield = data / "cranfield-en" if data else None
    if cranfield is not None and cranfield.is_dir():
        yield {"cranfield": read_retrieval_set(cranfield)}
    else:
        typer.echo("cranfield-en is left out: give its parent folder with --data", err=True)
    yield {"questions": _demo_collection(EVERYDAY), "questions_hard": _demo_collection(HARD)}


def _demo_collection(path: Path) -> RetrievalSet:
    documents = build_corpus()
    positions = {document.id: position for position, document in enumerate(documents)}
    questions = read_questions(path)
    return RetrievalSet(
        documents=[document.text for document in documents],
        queries=[question.text for question in questions],
        grades=[
            {positions[one]: 1.0 for one in question.accepted_ids if one in positions}
            for question in questions
        ],
    )


def _ingest(address: str, collection: RetrievalSet) -> None:
    texts = enumerate(collection.documents)
    documents = ({"id": str(position), "text": text} for position, text in texts if text.strip())
    with TextMatchClient(address) as client:
        summary = client.ingest_all(documents, wait=True)
    if summary.rejected:
        raise RuntimeError(f"{summary.rejected} documents were rejected: {summary.rejections[0].error}")


def _measure_set(
    address: str, set_name: str, collection: RetrievalSet, count: int | None
) -> dict[str, float]:
    collection = RetrievalSet(collection.documents, collection.queries[:count], collection.grades[:count])
    with TextMatchClient(address, bulk_timeout_seconds=_BULK_SECONDS) as client:
        rankings = _rankings(client, collection.queries)
    for deadline_ms in _DEADLINES_MS:
        rankings[f"deadline_{deadline_ms}_ms"] = _in_time(address, collection.queries, deadline_ms)
    measured = {mode: _metrics(collection, ranking) for mode, ranking in rankings.items()}
    print_table(
        f"{set_name}: {len(collection.queries)} queries, {len(collection.documents):,} documents",
        ["mode", "nDCG@10", "MRR@10", "recall@100", "first", "first three"],
        [
            [mode, *(f"{values[name]:.4f}" for name in ("ndcg@10", "mrr@10", "recall@100")), *_firsts(values)]
            for mode, values in measured.items()
        ],
    )
    return {
        f"{name.replace('@', '')}.{set_name}.{mode}": values[name]
        for mode, values in measured.items()
        for name in ("ndcg@10", "mrr@10", "recall@100")
    }


def _rankings(client: TextMatchClient, queries: Sequence[str]) -> dict[str, list[list[int]]]:
    """For each mode the documents' positions, best first: what was scored, then what recall adds."""
    rankings = {}
    for mode, options in MODES.items():
        scored = _matches(client, queries, {**options, "top_k": _SCORED})
        recalled = _matches(client, queries, {**options, "top_k": _DEPTH, "rerank": False})
        rankings[mode] = [_positions([*head, *tail]) for head, tail in zip(scored, recalled, strict=True)]
        if mode == "dense_cross_encoder":
            # The ranking by the cross-encoder alone.
            rankings["cross_encoder"] = [_positions(sorted(head, key=_by_pair)) for head in scored]
    wide: MatchKeywords = {"recall": Recall.HYBRID, "rerank": False, "explain": True}
    found = _matches(client, queries, {**wide, "top_k": _WIDE, "candidate_count": _WIDE})
    rankings["bm25"] = [_positions(sorted(matches, key=_by_bm25)) for matches in found]
    return rankings


def _in_time(address: str, queries: Sequence[str], deadline_ms: int) -> list[list[int]]:
    """Rankings within a deadline, with several callers at a time; empty if the answer is late."""

    def match(query: str) -> list[int]:
        try:
            # The spaces avoid a hit in the embedding cache, and change nothing else.
            return [int(match.document.id) for match in client.match(query + " " * deadline_ms)]
        except TextMatchError:
            return []

    with (
        TextMatchClient(address, timeout_seconds=deadline_ms / 1e3) as client,
        ThreadPoolExecutor(_DEADLINE_CALLERS) as callers,
    ):
        return list(callers.map(match, queries))


def _matches(
    client: TextMatchClient, queries: Sequence[str], options: MatchKeywords
) -> list[tuple[Match, ...]]:
    found: list[tuple[Match, ...]] = [()] * len(queries)
    for answer in client.batch_match(queries, **options):
        if answer.result is None or answer.result.degraded:
            reason = answer.result.degraded if answer.result else answer.error
            raise RuntimeError(f"no complete answer to {queries[answer.query_index]!r}: {reason}")
        found[answer.query_index] = answer.result.matches
    return found


def _positions(matches: Iterable[Match]) -> list[int]:
    return list(dict.fromkeys(int(match.document.id) for match in matches))[:_DEPTH]


def _by_pair(match: Match) -> float:
    return -(match.rerank_score or 0.0)


def _by_bm25(match: Match) -> float:
    return -(match.explanation.bm25 or 0.0) if match.explanation else 0.0


def _metrics(collection: RetrievalSet, rankings: Sequence[Sequence[int]]) -> Mapping[str, float]:
    grades = np.zeros((len(rankings), _DEPTH))
    for row, ranking, judged in zip(grades, rankings, collection.grades, strict=True):
        row[: len(ranking)] = [judged.get(position, 0.0) for position in ranking]
    columns = retrieval_metrics(grades, collection.ideal(_DEPTH), collection.relevant, [_DEPTH])
    return {
        **{name: float(values.mean()) for name, values in columns.items()},
        "first": _found_within(grades, 1),
        "first_three": _found_within(grades, 3),
    }


def _found_within(grades: Values, depth: int) -> float:
    return float((grades[:, :depth] > 0).any(axis=1).sum())


def _firsts(values: Mapping[str, float]) -> list[str]:
    return [f"{values[name]:.0f}" for name in ("first", "first_three")]


if __name__ == "__main__":
    typer.run(main)
