"""Forty everyday questions about the demo corpus, answered by the whole stack."""

from __future__ import annotations

import pytest

from standalone.demo.corpus import build_corpus, read_questions
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


def test_the_right_function_is_among_the_first_three_for_four_of_five(ranks: dict[str, int]):
    assert len(ranks) == 40
    assert sum(1 <= rank <= 3 for rank in ranks.values()) >= 32


def test_the_right_function_comes_first_for_three_of_five(ranks: dict[str, int]):
    assert sum(rank == 1 for rank in ranks.values()) >= 24
