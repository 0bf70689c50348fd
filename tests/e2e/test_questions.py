"""Forty everyday questions about the demo corpus, answered by the whole stack."""

from __future__ import annotations

import pytest

from standalone.demo.corpus import build_corpus
from standalone.demo.questions import read_questions
from tests.support.stack import Stack

BELOW_THE_AIM = (
    "measured: 29 of 40 among the first three, 20 first; the default models know too little about"
    " programming. Three sets of questions written blind were tried, see bench/RESULTS.md"
)


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


@pytest.mark.xfail(strict=True, reason=BELOW_THE_AIM)
def test_the_right_function_is_among_the_first_three_for_four_of_five(ranks: dict[str, int]):
    assert sum(1 <= rank <= 3 for rank in ranks.values()) >= 0.8 * len(ranks)


@pytest.mark.xfail(strict=True, reason=BELOW_THE_AIM)
def test_the_right_function_comes_first_for_three_of_five(ranks: dict[str, int]):
    assert sum(rank == 1 for rank in ranks.values()) >= 0.6 * len(ranks)


def test_answers_are_not_worse_than_they_were(ranks: dict[str, int]):
    among_three = sum(1 <= rank <= 3 for rank in ranks.values())
    first = sum(rank == 1 for rank in ranks.values())
    assert len(ranks) == 40
    assert (among_three >= 28, first >= 18) == (True, True), (among_three, first)
