"""The ranking quality of Match, stage by stage, in the whole stack: `python -m bench.quality --data DIR`.

DIR holds public data sets: `cranfield-en` and `cmrc-zh` (corpus.jsonl, queries.jsonl, qrels.tsv), and the
pairs `afqmc-zh/dev.tsv` and `lcqmc-zh/dev.tsv`, from which duplicates are retrieved. The demo's questions and
the near misses of bench/data are built in. A missing data set is left out. Figures are `METRIC.SET.MODE`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, TypeAlias

import numpy as np
import typer

from bench.report import JsonFile, print_table, write_figures
from bench.servers import running_stack
from services.matcher.settings import MatcherSettings
from standalone.demo.corpus import (
    EVERYDAY,
    EVERYDAY_ZH,
    HARD,
    HARD_ZH,
    HELP_DESK_EN,
    HELP_DESK_ZH,
    build_corpus,
    read_help_desk,
    read_questions,
)
from textmatch.client import Match, MatchKeywords, MatchResult, Recall, TextMatchClient
from textmatch.documents import Document
from textmatch.errors import TextMatchError
from textmatch.ranking_metrics import average_precision, retrieval_metrics
from training.evaluation.bootstrap import Values
from training.evaluation.matching import Half, read_duplicates, read_near_misses
from training.evaluation.retrieval import RetrievalSet, read_retrieval_set

Rankings: TypeAlias = Sequence[Sequence[int]]

_DEPTH = 100
_TOP_K = 10
# The number of candidates that the default settings score with the cross-encoder.
_SCORED = MatcherSettings().rerank_depth
# Enough candidates to include the best ones of each single stage.
_WIDE = 500
_QUICK_QUERIES = 10
_QUICK_DOCUMENTS = 2_000
_TIMED_QUERIES = 40
_BULK_SECONDS = 1_800.0
_DEADLINES_MS = (20, 50, 100, 300, 1_000)
_DEADLINE_CALLERS = 4
_NEAR_MISSES = Path(__file__).with_name("data")

MODES: dict[str, MatchKeywords] = {
    "dense": {"recall": Recall.DENSE, "rerank": False},
    "hybrid": {"recall": Recall.HYBRID, "rerank": False},
    "hybrid_cross_encoder": {"recall": Recall.HYBRID, "rerank": True},
    # The default: pairs are scored where that pays.
    "auto": {},
}


@dataclass(frozen=True)
class QualitySet:
    """Queries with the documents that answer them.

    Attributes:
        collection: documents, queries and grades.
        own: for queries that are documents themselves: the position of each, which is not an answer.
        near_misses: for queries with one answer: the position of the document that must be below it.
        has_deadlines: whether answers within a deadline are measured too.
    """

    collection: RetrievalSet
    own: Sequence[int] = ()
    near_misses: Sequence[int] = ()
    has_deadlines: bool = False

    @property
    def top_k(self) -> int:
        """How many matches to ask for, to have `_TOP_K` answers."""
        return _TOP_K + bool(self.own)

    def chosen(self, positions: Sequence[int]) -> QualitySet:
        """Only the queries at these positions."""
        queries, grades = self.collection.queries, self.collection.grades
        return replace(
            self,
            collection=replace(
                self.collection,
                queries=[queries[at] for at in positions],
                grades=[grades[at] for at in positions],
            ),
            own=[self.own[at] for at in positions] if self.own else (),
            near_misses=[self.near_misses[at] for at in positions] if self.near_misses else (),
        )


# Sets with the same documents.
SetsByName: TypeAlias = Mapping[str, QualitySet]
Group: TypeAlias = Callable[[], SetsByName]


def main(
    data: Annotated[
        Path | None, typer.Option(envvar="TEXTMATCH_BENCH_DATA", help="Folder of data sets.")
    ] = None,
    only: Annotated[str, typer.Option(help="Sets to measure, such as cranfield,near_miss_en.")] = "",
    queries: Annotated[
        int, typer.Option(min=0, help="Most queries of cmrc, afqmc and lcqmc, drawn; 0: all.")
    ] = 300,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="The held-out half of the near misses, not the other.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few queries of each set, small corpora.")] = False,
    json_path: JsonFile = None,
) -> None:
    """Measure the ranking of each set in each mode, and what it costs."""
    figures: dict[str, float] = {}
    half = Half.SECOND if held_out else Half.FIRST
    for address, group in served_groups(data, only, queries, half, _quick if quick else dict):
        for name, one in group.items():
            figures |= _measure_set(address, name, one)
    write_figures(figures, json_path)


def served_groups(
    data: Path | None, only: str, count: int, half: Half, prepare: Callable[[SetsByName], SetsByName]
) -> Iterator[tuple[str, SetsByName]]:
    """The matcher's address of a new stack with the documents of a group, and the chosen sets of the group.

    Args:
        only: names of sets, separated by commas; empty: all. A set whose data are missing is left out.
        count: most queries of a large set; 0: all.
        half: of the near misses.
        prepare: changes the sets of a group before their documents are ingested.
    """
    chosen = {name.strip() for name in only.split(",")} if only else set[str]()
    for names, read in groups(data, count, half):
        if chosen and not chosen & set(names):
            continue
        try:
            group = prepare({name: one for name, one in read().items() if not chosen or name in chosen})
        except TextMatchError as error:
            typer.echo(f"{', '.join(names)} left out: {error}", err=True)
            continue
        with tempfile.TemporaryDirectory() as directory, running_stack(Path(directory)) as stack:
            address = stack.addresses["matcher"]
            _ingest(address, next(iter(group.values())).collection.documents)
            yield address, group


def groups(data: Path | None, count: int, half: Half) -> Iterator[tuple[Sequence[str], Group]]:
    """Names and reader of the sets, in groups that share their documents."""
    folder = data or Path("DIR")
    yield ("cranfield",), lambda: {"cranfield": _retrieval_set(folder / "cranfield-en", has_deadlines=True)}
    yield ("cmrc",), lambda: {"cmrc": _drawn(_retrieval_set(folder / "cmrc-zh"), count)}
    questions = {
        "questions": EVERYDAY,
        "questions_hard": HARD,
        "questions_zh": EVERYDAY_ZH,
        "questions_hard_zh": HARD_ZH,
    }
    yield tuple(questions), lambda: _questions(build_corpus(), questions)
    asked = {"helpdesk_zh": HELP_DESK_ZH, "helpdesk_en": HELP_DESK_EN}
    yield tuple(asked), lambda: _questions(read_help_desk(), asked)
    for name in ("afqmc", "lcqmc"):
        path = folder / f"{name}-zh" / "dev.tsv"
        yield (name,), partial(lambda name, path: {name: _duplicates_set(path, count)}, name, path)
    for language in ("en", "zh"):
        name = f"near_miss_{language}"
        path = _NEAR_MISSES / f"{name}.tsv"
        yield (name,), partial(lambda name, path: {name: _near_miss_set(path, half)}, name, path)


def _retrieval_set(directory: Path, *, has_deadlines: bool = False) -> QualitySet:
    return QualitySet(read_retrieval_set(directory), has_deadlines=has_deadlines)


def _questions(documents: Sequence[Document], paths: Mapping[str, Path]) -> dict[str, QualitySet]:
    positions = {document.id: position for position, document in enumerate(documents)}
    found = {}
    for name, path in paths.items():
        questions = read_questions(path)
        grades = [
            {positions[one]: 1.0 for one in question.accepted_ids if one in positions}
            for question in questions
        ]
        collection = RetrievalSet([one.text for one in documents], [one.text for one in questions], grades)
        found[name] = QualitySet(collection, has_deadlines=path in (EVERYDAY, HARD))
    return found


def _duplicates_set(path: Path, count: int) -> QualitySet:
    found = read_duplicates(path, query_count=count)
    return QualitySet(found.retrieval, own=found.own.tolist())


def _near_miss_set(path: Path, half: Half) -> QualitySet:
    triples = read_near_misses(path, half)
    texts = (text for triple in triples for text in (triple.paraphrase, triple.near_miss))
    positions = {text: position for position, text in enumerate(dict.fromkeys(texts))}
    collection = RetrievalSet(
        list(positions),
        [triple.query for triple in triples],
        [{positions[triple.paraphrase]: 1.0} for triple in triples],
    )
    return QualitySet(collection, near_misses=[positions[triple.near_miss] for triple in triples])


def _drawn(whole: QualitySet, count: int) -> QualitySet:
    total = len(whole.collection.queries)
    if not count or count >= total:
        return whole
    drawn = np.random.default_rng(0).choice(total, count, replace=False)
    return whole.chosen(sorted(drawn.tolist()))


def _quick(group: SetsByName) -> SetsByName:
    return {name: _few(one) for name, one in group.items()}


def _few(whole: QualitySet) -> QualitySet:
    """The first queries; of duplicates, only the first documents too."""
    collection = whole.collection
    if not whole.own:
        return whole.chosen(range(min(_QUICK_QUERIES, len(collection.queries))))
    last = [max(own, *judged) for own, judged in zip(whole.own, collection.grades, strict=True)]
    few = whole.chosen([at for at, one in enumerate(last) if one < _QUICK_DOCUMENTS][:_QUICK_QUERIES])
    documents = collection.documents[:_QUICK_DOCUMENTS]
    return replace(few, collection=replace(few.collection, documents=documents))


def _ingest(address: str, texts: Sequence[str]) -> None:
    documents = ({"id": str(at), "text": text} for at, text in enumerate(texts) if text.strip())
    with TextMatchClient(address) as client:
        summary = client.ingest_all(documents, wait=True)
    if summary.rejected:
        raise RuntimeError(f"{summary.rejected} documents were rejected: {summary.rejections[0].error}")


def _measure_set(address: str, name: str, one: QualitySet) -> dict[str, float]:
    queries = one.collection.queries
    with TextMatchClient(address, bulk_timeout_seconds=_BULK_SECONDS) as client:
        rankings = _rankings(client, one)
        costs = {mode: _cost(client, queries, options) for mode, options in MODES.items()}
    for deadline_ms in _DEADLINES_MS if one.has_deadlines else ():
        rankings[f"deadline_{deadline_ms}_ms"] = _in_time(address, queries, deadline_ms)
    measured = {mode: _metrics(one, ranking) | costs.get(mode, {}) for mode, ranking in rankings.items()}
    names = dict.fromkeys(metric for values in measured.values() for metric in values)
    print_table(
        f"{name}: {len(queries)} queries, {len(one.collection.documents):,} documents",
        ["mode", *names],
        [
            [mode, *(f"{values[metric]:.4g}" if metric in values else "" for metric in names)]
            for mode, values in measured.items()
        ],
    )
    return {
        f"{metric}.{name}.{mode}": value
        for mode, values in measured.items()
        for metric, value in values.items()
    }


def _rankings(client: TextMatchClient, one: QualitySet) -> dict[str, Rankings]:
    """For each mode the documents' positions, best first: the matches, then what recall adds."""
    queries = one.collection.queries
    rankings: dict[str, Rankings] = {}
    for mode, options in MODES.items():
        is_scored = mode == "hybrid_cross_encoder"
        top_k = max(_SCORED, one.top_k) if is_scored else one.top_k
        found = _matches(client, queries, {**options, "top_k": top_k})
        recalled = _matches(client, queries, {**options, "top_k": _DEPTH, "rerank": False})
        rankings[mode] = [_positions([*head, *tail]) for head, tail in zip(found, recalled, strict=True)]
        if is_scored:
            # The ranking by the cross-encoder alone.
            rankings["cross_encoder"] = [_positions(sorted(head, key=_by_pair)) for head in found]
    wide: MatchKeywords = {"recall": Recall.HYBRID, "rerank": False, "explain": True}
    everything = _matches(client, queries, {**wide, "top_k": _WIDE, "candidate_count": _WIDE})
    rankings["bm25"] = [_positions(sorted(matches, key=_by_bm25)) for matches in everything]
    return rankings


def _cost(client: TextMatchClient, queries: Sequence[str], options: MatchKeywords) -> dict[str, float]:
    """The median milliseconds of a single match after another and of its rerank stage.

    Also the rerank stage's share of the whole time, and the mean number of pairs that are scored.
    """
    options = {**options, "top_k": _TOP_K}
    # The spaces avoid a hit in the embedding cache, and change nothing else.
    results = [client.match(f"{query}  ", **options) for query in queries[:_TIMED_QUERIES]]
    timings = [result.timings for result in results]
    total_ms = sum(one.total_ms for one in timings)
    return {
        "pairs": float(np.mean([result.scored_count for result in results])),
        "rerank_share": sum(one.rerank_ms for one in timings) / total_ms,
        "ms_p50": median(one.total_ms for one in timings),
        "rerank_ms_p50": median(one.rerank_ms for one in timings),
    }


def _in_time(address: str, queries: Sequence[str], deadline_ms: int) -> list[list[int]]:
    """Rankings within a deadline, with several callers at a time; empty if the answer is late."""

    def match(query: str) -> list[int]:
        try:
            return [int(match.document.id) for match in client.match(query + " " * deadline_ms)]
        except TextMatchError:
            return []

    with (
        TextMatchClient(address, timeout_seconds=deadline_ms / 1e3) as client,
        ThreadPoolExecutor(_DEADLINE_CALLERS) as callers,
    ):
        return list(callers.map(match, queries))


def complete_answers(
    client: TextMatchClient, queries: Sequence[str], options: MatchKeywords
) -> list[MatchResult]:
    """The answers in the order of the queries.

    Raises:
        RuntimeError: an answer is missing or degraded.
    """
    found: dict[int, MatchResult] = {}
    for answer in client.batch_match(queries, **options):
        if answer.result is None or answer.result.degraded:
            reason = answer.result.degraded if answer.result else answer.error
            raise RuntimeError(f"no complete answer to {queries[answer.query_index]!r}: {reason}")
        found[answer.query_index] = answer.result
    return [found[at] for at in range(len(queries))]


def _matches(
    client: TextMatchClient, queries: Sequence[str], options: MatchKeywords
) -> list[tuple[Match, ...]]:
    return [result.matches for result in complete_answers(client, queries, options)]


def _positions(matches: Iterable[Match]) -> list[int]:
    return list(dict.fromkeys(int(match.document.id) for match in matches))


def _by_pair(match: Match) -> float:
    return -(match.rerank_score or 0.0)


def _by_bm25(match: Match) -> float:
    return -(match.explanation.lexical or 0.0) if match.explanation else 0.0


def _metrics(one: QualitySet, rankings: Rankings) -> dict[str, float]:
    collection = one.collection
    if one.own:
        rankings = [[at for at in row if at != own] for row, own in zip(rankings, one.own, strict=True)]
    grades = np.zeros((len(rankings), _DEPTH))
    for row, ranking, judged in zip(grades, rankings, collection.grades, strict=True):
        first = ranking[:_DEPTH]
        row[: len(first)] = [judged.get(position, 0.0) for position in first]
    columns = retrieval_metrics(grades, collection.ideal(_DEPTH), collection.relevant, [_DEPTH])
    found = {name.replace("@", ""): float(values.mean()) for name, values in columns.items()}
    found |= {"first": _found_within(grades, 1), "first_three": _found_within(grades, 3)}
    if one.own:
        found = {"map": float(average_precision(grades, collection.relevant).mean()), **found}
    if one.near_misses:
        found = {"near_miss_accuracy": _near_miss_accuracy(one, rankings), **found}
    return found


def _near_miss_accuracy(one: QualitySet, rankings: Rankings) -> float:
    """The share of queries whose answer is ranked, and above its near miss."""
    is_above = [
        bool(judged) and _rank(ranking, *judged) < _rank(ranking, near_miss)
        for ranking, judged, near_miss in zip(rankings, one.collection.grades, one.near_misses, strict=True)
    ]
    return float(np.mean(is_above))


def _rank(ranking: Sequence[int], document: int) -> int:
    return ranking.index(document) if document in ranking else len(ranking)


def _found_within(grades: Values, depth: int) -> float:
    """The share of queries with an answer among the first `depth`."""
    return float((grades[:, :depth] > 0).any(axis=1).mean())


if __name__ == "__main__":
    typer.run(main)
