"""Exact search over a collection by a model's embeddings, and reranking of what it finds.

Documents, queries, and which documents are relevant to which query, from a folder as BEIR lays it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from textmatch.errors import InvalidInput
from textmatch.io.qrels import read_judgements, read_queries, read_texts
from textmatch.ranking_metrics import Ranks, best_first, retrieval_metrics
from training.evaluation.bootstrap import REPEATS, Resampled, Values, resample_means
from training.evaluation.scorers import BiEncoderSystem, CharacterTfidf, CrossEncoderSystem, System


@dataclass(frozen=True)
class Collection:
    """Texts of documents and of the judged queries; `grades` has, by query, the grades by document position.

    Grades above 0 are relevant.
    """

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
        """The grades of the best ranking that there could be: (queries, depth)."""
        best = np.zeros((len(self.grades), depth))
        for row, grades in zip(best, self.grades, strict=True):
            highest = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:depth]
            row[: len(highest)] = highest
        return best


def read_collection(directory: Path) -> Collection:
    """Reads corpus.jsonl, queries.jsonl, and qrels.tsv or qrels/test.tsv.

    A title stands before its document's text, unless the text begins with it. Queries without judgements are
    left out; documents without text stay, as those that no query finds.

    Raises:
        InvalidInput: a file is missing, a line cannot be read, an id occurs twice, or a judgement is of
            something that there is not; the message names file and line.
    """
    documents, queries = read_texts(directory / "corpus.jsonl"), read_queries(directory)
    positions = {name: number for number, name in enumerate(documents)}
    judged = read_judgements(directory, queries, positions)
    grades = [{positions[name]: grade for name, grade in one.items()} for one in judged.values()]
    return Collection(list(documents.values()), [queries[name] for name in judged], grades)


Similarities: TypeAlias = NDArray[np.float32]
Searcher: TypeAlias = BiEncoderSystem | CharacterTfidf
# So many queries are compared with all documents at a time.
_BLOCK_QUERIES = 256


@dataclass(frozen=True)
class Ranking:
    """The best documents of each query, best first: positions and scores, (queries, depth) each."""

    documents: Ranks
    scores: Similarities


def as_searcher(system: System) -> Searcher:
    """The system, if it can search.

    Raises:
        InvalidInput: it is a cross-encoder, which has no embeddings.
    """
    if isinstance(system, BiEncoderSystem | CharacterTfidf):
        return system
    raise InvalidInput.of_field("model", f'"{system.name}" is a cross-encoder, which can only --rerank')


def search(system: Searcher, collection: Collection, depth: int) -> Ranking:
    """The `depth` documents most similar to each query, or all if there are fewer."""
    depth = min(depth, len(collection.documents))
    found = [_best(block, depth) for block in _similarities(system, collection)]
    return Ranking(
        np.concatenate([one.documents for one in found]), np.concatenate([one.scores for one in found])
    )


def rerank(system: CrossEncoderSystem, collection: Collection, ranking: Ranking) -> Similarities:
    """The cross-encoder's scores of the ranked documents, in the order of the ranking: (queries, depth)."""
    pairs = [
        (query, collection.documents[document])
        for query, row in zip(collection.queries, ranking.documents.tolist(), strict=True)
        for document in row
    ]
    (scored,) = system.score(pairs)
    return scored.scores.reshape(ranking.documents.shape)


def reordered(ranking: Ranking, scores: Similarities) -> Ranking:
    """The same documents by other scores (queries, depth)."""
    order = best_first(scores)
    return Ranking(
        np.take_along_axis(ranking.documents, order, axis=1), np.take_along_axis(scores, order, axis=1)
    )


def measure_ranking(
    ranking: Ranking,
    collection: Collection,
    recall_depths: Sequence[int],
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Resampled:
    """nDCG@10, MRR@10 and recall, resampled over queries."""
    grades = collection.grades_of(ranking.documents)
    ideal = collection.ideal(max(10, grades.shape[1]))
    columns = retrieval_metrics(grades, ideal, collection.relevant, recall_depths)
    return resample_means(columns, repeats=repeats, seed=seed)


def _similarities(system: Searcher, collection: Collection) -> list[Similarities]:
    """Blocks of (queries, documents)."""
    if isinstance(system, CharacterTfidf):
        vectorizer = system.vectorizer()
        documents = vectorizer.fit_transform(collection.documents)
        queries = vectorizer.transform(collection.queries)
        return [
            (queries[start : start + _BLOCK_QUERIES] @ documents.T).toarray().astype(np.float32)
            for start in range(0, queries.shape[0], _BLOCK_QUERIES)
        ]
    stored = system.embed(collection.documents, is_query=False)
    asked = system.embed(collection.queries, is_query=True)
    return [
        asked[start : start + _BLOCK_QUERIES] @ stored.T for start in range(0, len(asked), _BLOCK_QUERIES)
    ]


def _best(similarities: Similarities, depth: int) -> Ranking:
    """Sorts only the best `depth` of (queries, documents)."""
    best = np.argpartition(-similarities, depth - 1, axis=1)[:, :depth]
    scores = np.take_along_axis(similarities, best, axis=1)
    return reordered(Ranking(best, scores), scores)
