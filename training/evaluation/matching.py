"""Evaluation of matching proper: paraphrases against near misses, and duplicates among many sentences.

textmatch evaluate near-misses MODEL bench/data/near_miss_en.tsv --half first
textmatch evaluate duplicates CROSS_ENCODER pairs.tsv --recall BI_ENCODER
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score

from textmatch.errors import InvalidInput
from textmatch.io.columns import Column
from textmatch.io.data_files import DETECTED, FileFormat
from textmatch.models.fast_tokenizer import Pair
from textmatch.ranking_metrics import Ranks, average_precision, best_first, recall, reciprocal_rank
from training.evaluation.bootstrap import (
    REPEATS,
    BootstrapMetrics,
    Indices,
    Values,
    resample,
    resample_means,
)
from training.evaluation.pairs import Flags, correct_by_folds, scores_by_name
from training.evaluation.retrieval import (
    ExactIndex,
    RankedDocuments,
    RetrievalSet,
    Searcher,
    Similarities,
    rerank,
)
from training.evaluation.scorers import CrossEncoderSystem, System
from training.examples import read_scored_pairs, read_texts

# Documents of each query that the metrics of a ranking read.
DEPTH = 100
ALL_KINDS = "all"
_COLUMNS = [Column(name, (name.replace(" ", ""),)) for name in ("kind", "query", "paraphrase", "near miss")]
# A Chinese, Japanese or Korean character, or a run of other letters and digits.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)


class Half(StrEnum):
    """Which lines of a file to read."""

    FIRST = "first"
    SECOND = "second"
    ALL = "all"


@dataclass(frozen=True)
class NearMissTriple:
    """A query, a text with the same meaning, and one with similar words and another meaning."""

    kind: str
    query: str
    paraphrase: str
    near_miss: str

    @property
    def is_hard(self) -> bool:
        """Whether the near miss shares more words (CJK: characters) with the query than the paraphrase."""
        words = _words(self.query)
        return len(words & _words(self.near_miss)) > len(words & _words(self.paraphrase))


@dataclass(frozen=True)
class DuplicatesSet:
    """Labelled pairs as a retrieval set: the corpus is all distinct sentences.

    `own` (queries,) is the position of each query among the documents; it is not an answer. `is_duplicate`
    (pairs,) are the labels of `pairs`.
    """

    retrieval: RetrievalSet
    own: Ranks
    pairs: Sequence[Pair]
    is_duplicate: Flags


@dataclass(frozen=True)
class Ranking:
    """The documents found for each query, without the query itself, and what finding them cost."""

    found: RankedDocuments
    corpus_seconds: float
    ms_per_query: float


def read_near_misses(
    path: Path, half: Half = Half.ALL, file_format: FileFormat = DETECTED
) -> list[NearMissTriple]:
    """The triples of a file: kind, query, paraphrase, near miss.

    Raises:
        InvalidInput: the file cannot be read, has no triple in this half, or a row lacks a column or has an
            empty one; the message names the line.
    """
    rows = read_texts(path, _COLUMNS, file_format)
    triples = [NearMissTriple(*map(str.strip, texts)) for texts in rows]
    middle = (len(triples) + 1) // 2
    chosen = {Half.FIRST: triples[:middle], Half.SECOND: triples[middle:], Half.ALL: triples}[half]
    if not chosen:
        raise InvalidInput.of_field(str(path), "has no triples")
    return chosen


def measure_near_misses(
    system: System,
    triples: Sequence[NearMissTriple],
    *,
    both_orders: bool = False,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, BootstrapMetrics]:
    """By scorer of the system: how often the paraphrase scores above its near miss, in all and by kind.

    A tie counts as wrong. The query is the first text of each pair; with `both_orders`, the score is the mean
    of both orders.
    """
    pairs = [(triple.query, triple.paraphrase) for triple in triples]
    pairs += [(triple.query, triple.near_miss) for triple in triples]
    scores = scores_by_name(system, pairs)
    if both_orders:
        reverse = scores_by_name(system, [(second, first) for first, second in pairs])
        scores = {name: (scores[name] + reverse[name]) / 2 for name in scores}
    return {
        name: near_miss_accuracy(triples, own[: len(triples)] > own[len(triples) :], repeats, seed)
        for name, own in scores.items()
    }


def near_miss_accuracy(
    triples: Sequence[NearMissTriple], is_above: Flags, repeats: int = REPEATS, seed: int = 0
) -> BootstrapMetrics:
    """The share of triples (count,) whose paraphrase is above the near miss: of all, and of each kind."""
    kinds = np.array([triple.kind for triple in triples])
    members = {ALL_KINDS: np.ones(len(triples), dtype=np.bool_)}
    members |= {str(kind): kinds == kind for kind in np.unique(kinds)}

    def measure(indices: Indices) -> dict[str, Values]:
        found: dict[str, Values] = {}
        for kind, is_member in members.items():
            counts = is_member[indices].sum(axis=1)
            right = (is_member & is_above)[indices].sum(axis=1)
            undefined = np.full(len(indices), np.nan)
            found[kind] = np.divide(right, counts, out=undefined, where=counts > 0)
        return found

    return resample(measure, len(triples), repeats=repeats, seed=seed)


def read_duplicates(
    path: Path, file_format: FileFormat = DETECTED, *, query_count: int = 0, seed: int = 0
) -> DuplicatesSet:
    """Pairs with the labels 0 and 1 as a retrieval set.

    Queries are the first sentences of the pairs with label 1. Relevant is each sentence that a chain of such
    pairs connects to the query, except those that a pair with label 0 tells apart from it.

    Args:
        path: of the pairs.
        file_format: its layout.
        query_count: that many queries, drawn with the seed; 0: all.
        seed: of the draw.

    Raises:
        InvalidInput: the file cannot be read, or has no two different sentences with label 1.
    """
    rows = read_scored_pairs(path, file_format)
    pairs = [(row.first.strip(), row.second.strip()) for row in rows]
    is_duplicate = np.array([row.score >= 0.5 for row in rows])
    positions = {text: at for at, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    same: dict[int, set[int]] = defaultdict(set)
    different: dict[int, set[int]] = defaultdict(set)
    for (first, second), is_same in zip(pairs, is_duplicate, strict=True):
        partners = same if is_same else different
        partners[positions[first]].add(positions[second])
        partners[positions[second]].add(positions[first])
    firsts = (positions[first] for (first, _), is_same in zip(pairs, is_duplicate, strict=True) if is_same)
    relevant = {
        query: found for query in dict.fromkeys(firsts) if (found := _relevant_to(query, same, different))
    }
    if not relevant:
        raise InvalidInput.of_field(str(path), "has no two different sentences with label 1")
    queries = np.array(list(relevant))
    if query_count and query_count < len(queries):
        queries = np.sort(np.random.default_rng(seed).choice(queries, query_count, replace=False))
    documents = list(positions)
    retrieval = RetrievalSet(
        documents=documents,
        queries=[documents[query] for query in queries],
        grades=[dict.fromkeys(sorted(relevant[query]), 1.0) for query in queries.tolist()],
    )
    return DuplicatesSet(retrieval, queries, pairs, is_duplicate)


def rank_by_recall(system: Searcher, test_set: DuplicatesSet) -> Ranking:
    """The most similar sentences of each query by exact search."""
    started = time.perf_counter()
    index = ExactIndex(system, test_set.retrieval.documents)
    embedded = time.perf_counter()
    found = without_own(index.search(test_set.retrieval.queries, DEPTH + 1), test_set.own)
    seconds = time.perf_counter() - embedded
    return Ranking(found, embedded - started, 1e3 * seconds / len(test_set.own))


def rank_by_pairs(
    system: CrossEncoderSystem, test_set: DuplicatesSet, recalled: Ranking, candidates: int
) -> Ranking:
    """The first `candidates` of each query sorted by a cross-encoder; its scores are those of the result.

    The other recalled documents follow in their order, with scores below all others.
    """
    documents = recalled.found.documents
    first = RankedDocuments(documents[:, :candidates], recalled.found.scores[:, :candidates])
    started = time.perf_counter()
    scores = rerank(system, test_set.retrieval, first)
    seconds = time.perf_counter() - started
    order = best_first(scores)
    rest = np.arange(first.documents.shape[1], documents.shape[1])
    order = np.concatenate([order, np.broadcast_to(rest, (len(order), len(rest)))], axis=1)
    below = np.full((len(order), len(rest)), scores.min() - 1, dtype=np.float32)
    found = RankedDocuments(
        np.take_along_axis(documents, order, axis=1),
        np.take_along_axis(np.concatenate([scores, below], axis=1), order, axis=1),
    )
    return Ranking(found, 0.0, recalled.ms_per_query + 1e3 * seconds / len(order))


def without_own(ranking: RankedDocuments, own: Ranks) -> RankedDocuments:
    """A ranking (queries, depth) without the query, or else without the last: (queries, depth - 1)."""
    is_kept = ranking.documents != own[:, np.newaxis]
    is_kept[is_kept.all(axis=1), -1] = False
    shape = (len(own), -1)
    return RankedDocuments(ranking.documents[is_kept].reshape(shape), ranking.scores[is_kept].reshape(shape))


def measure_duplicates(
    system: System,
    ranking: Ranking,
    test_set: DuplicatesSet,
    candidates: int,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> BootstrapMetrics:
    """MAP, MRR@10 and recall@10 of the ranking, and the quality of 'is it a duplicate?' decisions.

    `accept_ap` is the average precision over all pairs of a query and one of its first `candidates`, sorted
    by score across queries. `pair_ap` and `accuracy` are of the labelled pairs of the file, the threshold
    cross-validated. A system with several scorers is judged by its cosine or cross-encoder score.
    """
    grades = test_set.retrieval.grades_of(ranking.found.documents)
    relevant = test_set.retrieval.relevant
    ranked = resample_means(
        {
            "map": average_precision(grades, relevant),
            "mrr@10": reciprocal_rank(grades, 10),
            "recall@10": recall(grades, relevant, 10),
        },
        repeats=repeats,
        seed=seed,
    )
    accepted = _accept_precision(
        ranking.found.scores[:, :candidates], grades[:, :candidates] > 0, repeats, seed
    )
    labelled = _labelled_pairs(system.score(test_set.pairs)[-1].scores, test_set.is_duplicate, repeats, seed)
    parts = (ranked, accepted, labelled)
    return BootstrapMetrics(
        {name: value for part in parts for name, value in part.values.items()},
        {name: row for part in parts for name, row in part.repeats.items()},
    )


def _accept_precision(scores: Similarities, is_relevant: Flags, repeats: int, seed: int) -> BootstrapMetrics:
    """Average precision over the pooled candidates (queries, candidates), resampled over queries."""
    order = np.argsort(-scores, axis=None, kind="stable")
    falling, is_right = scores.ravel()[order], is_relevant.ravel()[order]
    query_of = order // scores.shape[1]
    # A threshold cannot lie between equal scores.
    ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)

    def one(indices: Indices) -> float:
        weights = np.bincount(indices, minlength=len(scores))[query_of]
        accepted, right = np.cumsum(weights)[ends], np.cumsum(weights * is_right)[ends]
        if not right[-1]:
            return float("nan")
        return float((np.diff(right, prepend=0) * right / np.maximum(accepted, 1)).sum() / right[-1])

    return resample(
        lambda rows: {"accept_ap": np.array([one(row) for row in rows])},
        len(scores),
        repeats=repeats,
        seed=seed,
    )


def _labelled_pairs(scores: Similarities, is_duplicate: Flags, repeats: int, seed: int) -> BootstrapMetrics:
    is_correct, _ = correct_by_folds(scores.astype(np.float64), is_duplicate, seed)
    found = resample_means({"accuracy": is_correct.astype(np.float64)}, repeats=repeats, seed=seed)
    # Without an interval, because resampling it costs more than it says next to the others.
    precision = float(average_precision_score(is_duplicate, scores))
    return BootstrapMetrics(
        {"pair_ap": precision, **found.values}, {"pair_ap": np.full(repeats, np.nan), **found.repeats}
    )


def _relevant_to(query: int, same: dict[int, set[int]], different: dict[int, set[int]]) -> set[int]:
    reached, pending = {query}, [query]
    while pending:
        found = same[pending.pop()] - reached
        reached |= found
        pending += found
    return reached - {query} - (different[query] - same[query])


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))
