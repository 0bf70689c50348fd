"""Evaluation of retrieval on a test set in BEIR's layout: exact search, reranking, and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from textmatch.errors import InvalidInput
from textmatch.io.qrels import read_judgements, read_queries, read_texts
from textmatch.ranking_metrics import Ranks, best_first, retrieval_metrics
from training.evaluation.bootstrap import REPEATS, BootstrapMetrics, Values, resample_means
from training.evaluation.scorers import BiEncoderSystem, CharacterTfidf, CrossEncoderSystem, System

Similarities: TypeAlias = NDArray[np.float32]
Searcher: TypeAlias = BiEncoderSystem | CharacterTfidf
# Queries that are compared with all documents at a time.
_BLOCK_QUERIES = 256


@dataclass(frozen=True)
class RetrievalSet:
    """Documents, judged queries and, for each query, the grades by document position. 0 is not relevant."""

    documents: list[str]
    queries: list[str]
    grades: list[dict[int, float]]

    @property
    def relevant(self) -> Ranks:
        """How many documents are relevant to each query: (queries,)."""
        return np.array([sum(grade > 0 for grade in grades.values()) for grades in self.grades])

    def grades_of(self, ranking: Ranks) -> Values:
        """The grades of ranked documents: (queries, depth), from their positions (queries, depth)."""
        return np.array(
            [
                [grades.get(document, 0.0) for document in row]
                for grades, row in zip(self.grades, ranking.tolist(), strict=True)
            ]
        )

    def ideal(self, depth: int) -> Values:
        """The grades of the best possible ranking: (queries, depth)."""
        best = np.zeros((len(self.grades), depth))
        for row, grades in zip(best, self.grades, strict=True):
            highest = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:depth]
            row[: len(highest)] = highest
        return best


@dataclass(frozen=True)
class RankedDocuments:
    """The best documents of each query, best first: positions and scores, (queries, depth) each."""

    documents: Ranks
    scores: Similarities


def read_retrieval_set(directory: Path) -> RetrievalSet:
    """The test set in corpus.jsonl, queries.jsonl and qrels.tsv, or qrels/test.tsv, of a folder.

    Queries without judgements are left out. Documents without text stay, but no query finds them.

    Raises:
        InvalidInput: a file is missing, a line cannot be read, an id occurs twice, or a judgement names an
            unknown query or document; the message names file and line.
    """
    documents, queries = read_texts(directory / "corpus.jsonl"), read_queries(directory)
    positions = {name: number for number, name in enumerate(documents)}
    judged = read_judgements(directory, queries, positions)
    grades = [{positions[name]: grade for name, grade in one.items()} for one in judged.values()]
    return RetrievalSet(list(documents.values()), [queries[name] for name in judged], grades)


def as_searcher(system: System) -> Searcher:
    """The system, if it has embeddings to search with.

    Raises:
        InvalidInput: it is a cross-encoder.
    """
    if isinstance(system, BiEncoderSystem | CharacterTfidf):
        return system
    raise InvalidInput.of_field("model", f'"{system.name}" is a cross-encoder, which can only --rerank')


class ExactIndex:
    """Documents that are compared with every query."""

    def __init__(self, system: Searcher, documents: Sequence[str]) -> None:
        self._embed: Callable[[Sequence[str]], Any]
        self._rows: Any  # (documents, dimension)
        if isinstance(system, CharacterTfidf):
            vectorizer = system.vectorizer()
            self._rows, self._embed = vectorizer.fit_transform(documents), vectorizer.transform
        else:
            self._rows = system.embed(documents, is_query=False)
            self._embed = partial(system.embed, is_query=True)

    def search(self, queries: Sequence[str], depth: int) -> RankedDocuments:
        """The `depth` most similar documents of each query, or all if there are fewer."""
        depth = min(depth, self._rows.shape[0])
        found = [_best(block, depth) for block in self._similarities(queries)]
        return RankedDocuments(
            np.concatenate([one.documents for one in found]), np.concatenate([one.scores for one in found])
        )

    def _similarities(self, queries: Sequence[str]) -> Iterator[Similarities]:
        """Blocks of (queries, documents)."""
        embedded = self._embed(queries)
        for start in range(0, embedded.shape[0], _BLOCK_QUERIES):
            block = embedded[start : start + _BLOCK_QUERIES] @ self._rows.T
            yield block.toarray().astype(np.float32) if issparse(block) else block


def rerank(system: CrossEncoderSystem, test_set: RetrievalSet, ranking: RankedDocuments) -> Similarities:
    """The cross-encoder's scores of the ranked documents, in the order of the ranking: (queries, depth)."""
    pairs = [
        (query, test_set.documents[document])
        for query, row in zip(test_set.queries, ranking.documents.tolist(), strict=True)
        for document in row
    ]
    (scored,) = system.score(pairs)
    return scored.scores.reshape(ranking.documents.shape)


def reordered(ranking: RankedDocuments, scores: Similarities) -> RankedDocuments:
    """The same documents sorted by other scores (queries, depth)."""
    order = best_first(scores)
    return RankedDocuments(
        np.take_along_axis(ranking.documents, order, axis=1), np.take_along_axis(scores, order, axis=1)
    )


def measure_ranking(
    ranking: RankedDocuments,
    test_set: RetrievalSet,
    recall_depths: Sequence[int],
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> BootstrapMetrics:
    """nDCG@10, MRR@10 and recall, resampled over queries."""
    grades = test_set.grades_of(ranking.documents)
    ideal = test_set.ideal(max(10, grades.shape[1]))
    columns = retrieval_metrics(grades, ideal, test_set.relevant, recall_depths)
    return resample_means(columns, repeats=repeats, seed=seed)


def _best(similarities: Similarities, depth: int) -> RankedDocuments:
    """Sorts only the best `depth` of (queries, documents)."""
    best = np.argpartition(-similarities, depth - 1, axis=1)[:, :depth]
    scores = np.take_along_axis(similarities, best, axis=1)
    return reordered(RankedDocuments(best, scores), scores)
