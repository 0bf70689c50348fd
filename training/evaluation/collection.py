"""Documents, queries, and which documents are relevant to which query, from a folder as BEIR lays it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from textmatch.cli.judgements import read_judgements, read_queries, read_texts
from training.evaluation.resampling import Values
from training.evaluation.retrieval_metrics import Ranks


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
