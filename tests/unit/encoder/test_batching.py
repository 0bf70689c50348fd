from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.encoder.batching import BatchPolicy, BulkCredit, padded_tokens, take_padded_batch

token_counts = st.lists(st.integers(1, 512), min_size=1, max_size=200)
policies = st.builds(
    BatchPolicy,
    token_budget=st.integers(1, 4096),
    bulk_share=st.floats(0.01, 0.5),
    forward_cost_tokens=st.integers(0, 256),
)

few_examples = settings(max_examples=50)


def _policy(token_budget: int, forward_cost_tokens: int = 64, bulk_share: float = 0.1) -> BatchPolicy:
    return BatchPolicy(token_budget, bulk_share, forward_cost_tokens)


@few_examples
@given(token_counts, policies)
def test_a_batch_holds_the_oldest_text_and_no_text_twice(counts: list[int], policy: BatchPolicy):
    batch = take_padded_batch(counts, policy)
    assert 0 in batch
    assert len(set(batch)) == len(batch)
    assert all(0 <= position < len(counts) for position in batch)


@few_examples
@given(token_counts, policies)
def test_the_budget_is_kept_unless_the_oldest_alone_is_larger(counts: list[int], policy: BatchPolicy):
    batch = [counts[position] for position in take_padded_batch(counts, policy)]
    assert padded_tokens(batch) <= policy.token_budget or batch == [counts[0]]


@few_examples
@given(token_counts, policies)
def test_no_more_is_padded_than_another_pass_would_cost(counts: list[int], policy: BatchPolicy):
    batch = [counts[position] for position in take_padded_batch(counts, policy)]
    assert padded_tokens(batch) - sum(batch) <= policy.forward_cost_tokens


@few_examples
@given(token_counts, policies)
def test_of_texts_of_one_length_the_older_go_first(counts: list[int], policy: BatchPolicy):
    batch = take_padded_batch(counts, policy)
    for tokens in {counts[position] for position in batch}:
        taken = [position for position in batch if counts[position] == tokens]
        older = [position for position, count in enumerate(counts) if count == tokens and position < taken[0]]
        assert taken == sorted(taken)
        assert tokens != counts[0] or not older


@few_examples
@given(token_counts, policies)
def test_emptying_the_queue_takes_every_text_once(counts: list[int], policy: BatchPolicy):
    queued = list(enumerate(counts))
    taken: list[int] = []
    while queued:
        batch = set(take_padded_batch([tokens for _, tokens in queued], policy))
        taken += [queued[position][0] for position in batch]
        queued = [item for position, item in enumerate(queued) if position not in batch]
    assert sorted(taken) == list(range(len(counts)))


def test_texts_of_similar_length_share_a_batch():
    assert sorted(take_padded_batch([20, 200, 21, 190, 19, 400], _policy(1024))) == [0, 2, 4]


def test_padding_little_is_better_than_another_pass():
    assert sorted(take_padded_batch([20, 40, 60], _policy(1024))) == [0, 1, 2]


def test_a_text_larger_than_the_budget_goes_alone():
    assert take_padded_batch([600, 600, 10], _policy(512)) == [0]


@few_examples
@given(
    st.floats(0.01, 0.5),
    st.lists(st.integers(1, 256), min_size=150, max_size=150),
    st.integers(64, 2048),
)
def test_bulk_gets_its_share_under_any_interactive_load(
    bulk_share: float, batch_tokens: list[int], token_budget: int
):
    credit = BulkCredit(bulk_share)
    taken = {False: 0, True: 0}
    for tokens in batch_tokens:
        is_bulk = credit.is_bulk_next(interactive_queued=True, bulk_queued=True, bulk_cost=token_budget)
        # A bulk batch is full at most; it is what the credit is for.
        tokens = min(tokens, token_budget)
        credit.account(tokens, is_bulk=is_bulk, bulk_queued=True)
        taken[is_bulk] += tokens
    owed = bulk_share * (taken[False] + taken[True]) - taken[True]
    assert owed <= token_budget


def test_bulk_is_next_when_nothing_else_is_queued():
    credit = BulkCredit(0.1)
    assert credit.is_bulk_next(interactive_queued=False, bulk_queued=True, bulk_cost=100)
    assert not credit.is_bulk_next(interactive_queued=True, bulk_queued=True, bulk_cost=100)
    assert not credit.is_bulk_next(interactive_queued=True, bulk_queued=False, bulk_cost=100)


def test_no_credit_is_earned_while_no_bulk_queued():
    credit = BulkCredit(0.5)
    credit.account(1_000, is_bulk=False, bulk_queued=False)
    assert not credit.is_bulk_next(interactive_queued=True, bulk_queued=True, bulk_cost=100)


@pytest.mark.parametrize(
    ("tokens_per_second", "tokens"),
    [(50_000, 1_000), (400_000, 8_000), (10_000_000, 8_192), (1_000, 256), (0, 256)],
)
def test_a_budget_is_what_the_model_computes_in_the_target_time(tokens_per_second: float, tokens: int):
    policy = BatchPolicy(8_192, 0.1, 64, target_seconds=0.02)
    assert policy.for_speed(tokens_per_second).token_budget == tokens
    assert policy.for_speed(tokens_per_second).quantum_tokens == tokens // 4


def test_a_budget_without_a_target_time_is_fixed():
    assert _policy(1_024).for_speed(5.0) == _policy(1_024)
    assert _policy(1_024).limited(100) == _policy(100)
    assert _policy(100).limited(1_024) == _policy(100)


@pytest.mark.parametrize(("counts", "padded"), [([5], 5), ([5, 3, 1], 15)])
def test_padding_counts(counts: list[int], padded: int):
    assert padded_tokens(counts) == padded
