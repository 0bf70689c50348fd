"""Forty questions in plain words about the demo corpus, answered by the whole stack."""

from __future__ import annotations

import pytest

from standalone.demo.corpus import build_corpus
from standalone.demo.questions import read_questions
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def ranks(stack: Stack) -> dict[str, int]:
    """Question -> rank of the first right answer, from 1; 0 if it is not among the first ten."""
    with stack.client() as client:
        documents = build_corpus()
        summary = client.ingest_all(documents, wait=True)
        assert summary.accepted + summary.unchanged == len(documents)
        return {
            question.text: next(
                (
                    rank
                    for rank, match in enumerate(client.match(question.text, top_k=10), start=1)
                    if match.document.id in question.accepted_ids
                ),
                0,
            )
            for question in read_questions()
        }


def test_the_right_function_is_among_the_first_three(ranks: dict[str, int]):
    missed = [question for question, rank in ranks.items() if not 1 <= rank <= 3]
    assert len(ranks) == 40
    assert len(missed) <= 8, missed


def test_the_right_function_comes_first(ranks: dict[str, int]):
    not_first = [question for question, rank in ranks.items() if rank != 1]
    assert len(not_first) <= 16, not_first
