"""Callers share the queue: a new caller waits for at most one quantum of each other caller."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.encoder.batching import BatchPolicy, take_packed_batch
from services.encoder.fair_queue import CallerTotals, DeficitRoundRobinQueue

_LONGEST = 512
_CALLERS = "abcdef"


@dataclass(frozen=True)
class _Text:
    caller: str
    tokens: int
    number: int


policies = st.builds(
    BatchPolicy, token_budget=st.integers(1, 4096), bulk_share=st.just(0.1), forward_cost_tokens=st.just(64)
)
calls = st.lists(
    st.tuples(st.sampled_from(_CALLERS), st.lists(st.integers(1, _LONGEST), min_size=1, max_size=20)),
    min_size=1,
    max_size=20,
)


def _texts(caller: str, token_counts: Sequence[int], first: int = 0) -> list[_Text]:
    return [_Text(caller, tokens, number) for number, tokens in enumerate(token_counts, first)]


def _queue(
    policy: BatchPolicy, is_over: Callable[[_Text], bool] = lambda text: False
) -> DeficitRoundRobinQueue[_Text]:
    return DeficitRoundRobinQueue(policy.quantum_tokens, is_over)


def _add_all(queue: DeficitRoundRobinQueue[_Text], wanted: list[tuple[str, list[int]]]) -> list[_Text]:
    added: list[_Text] = []
    for caller, token_counts in wanted:
        texts = _texts(caller, token_counts, first=len(added))
        queue.add(caller, texts)
        added += texts
    return added


def _batches(queue: DeficitRoundRobinQueue[_Text], policy: BatchPolicy) -> list[list[_Text]]:
    batches = []
    while batch := take_packed_batch(queue, policy):
        batches.append(batch)
    return batches


@given(calls, policies)
def test_nothing_is_lost_and_each_caller_has_its_order(
    wanted: list[tuple[str, list[int]]], policy: BatchPolicy
):
    queue = _queue(policy)
    added = _add_all(queue, wanted)
    taken = [text for batch in _batches(queue, policy) for text in batch]
    for caller in _CALLERS:
        assert [text for text in taken if text.caller == caller] == [
            text for text in added if text.caller == caller
        ]


@given(calls, policies)
def test_the_budget_is_kept_and_used(wanted: list[tuple[str, list[int]]], policy: BatchPolicy):
    queue = _queue(policy)
    _add_all(queue, wanted)
    while batch := take_packed_batch(queue, policy):
        tokens = sum(text.tokens for text in batch)
        assert tokens <= policy.token_budget or len(batch) == 1
        following = queue.peek()
        assert following is None or tokens + following.tokens > policy.token_budget


@given(st.lists(st.integers(1, _LONGEST), min_size=1, max_size=50), policies)
def test_calls_of_one_text_go_in_the_order_they_came(token_counts: list[int], policy: BatchPolicy):
    queue = _queue(policy)
    for number, tokens in enumerate(token_counts):
        queue.add(f"caller {number}", _texts("", [tokens], first=number))
    taken = [text.number for batch in _batches(queue, policy) for text in batch]
    assert taken == list(range(len(token_counts)))


@given(
    st.lists(st.lists(st.integers(1, _LONGEST), min_size=40, max_size=60), min_size=1, max_size=5),
    st.lists(st.integers(1, _LONGEST), min_size=1, max_size=4),
    st.integers(0, 20),
    policies,
)
def test_a_new_caller_waits_for_one_quantum_of_each_other(
    queued: list[list[int]], wanted: list[int], batches_before: int, policy: BatchPolicy
):
    queue = _queue(policy)
    for caller, token_counts in zip(_CALLERS, queued, strict=False):
        queue.add(caller, _texts(caller, token_counts))
    for _ in range(batches_before):
        take_packed_batch(queue, policy)
    queue.add("new", _texts("new", wanted))
    ahead: Counter[str] = Counter()
    while (text := queue.peek()) is not None and text.caller != "new":
        ahead[text.caller] += queue.take().tokens
    assert all(tokens < policy.quantum_tokens + _LONGEST for tokens in ahead.values())


@given(
    st.lists(st.integers(1, _LONGEST), min_size=200, max_size=200),
    st.lists(st.integers(1, _LONGEST), min_size=200, max_size=200),
    policies,
)
def test_callers_that_always_wait_get_as_many_tokens(
    first: list[int], second: list[int], policy: BatchPolicy
):
    queue = _queue(policy)
    queue.add("a", _texts("a", first))
    queue.add("b", _texts("b", second))
    left, tokens = Counter({"a": 200, "b": 200}), Counter[str]()
    while all(left.values()):
        assert queue.peek() is not None
        text = queue.take()
        left[text.caller] -= 1
        tokens[text.caller] += text.tokens
        assert abs(tokens["a"] - tokens["b"]) <= 2 * policy.quantum_tokens + _LONGEST


@given(st.integers(1, _LONGEST), st.integers(1, 60), policies)
def test_endless_new_callers_starve_no_caller(tokens: int, callers: int, policy: BatchPolicy):
    queue = _queue(policy)
    queue.add("patient", _texts("patient", [_LONGEST] * 3))
    numbers = iter(range(10**6))
    # The overdraft of a text longer than a quantum is paid in so many rounds, each of one text of all others.
    rounds = 3 * (1 + _LONGEST // policy.quantum_tokens)
    for _ in range(callers):
        queue.add(f"new {next(numbers)}", _texts("new", [tokens]))
    taken = 0
    while len([text for text in queue if text.caller == "patient"]):
        assert queue.peek() is not None
        if queue.take().caller == "new":
            queue.add(f"new {next(numbers)}", _texts("new", [tokens]))
        taken += 1
        assert taken <= rounds * (callers + 1)


@given(calls, st.sets(st.integers(0, 400)), policies)
def test_what_is_over_is_not_taken_and_costs_its_caller_nothing(
    wanted: list[tuple[str, list[int]]], over: set[int], policy: BatchPolicy
):
    queue = _queue(policy, lambda text: text.number in over)
    alone = _queue(policy)
    for text in _add_all(queue, wanted):
        if text.number not in over:
            alone.add(text.caller, [text])
    taken = [text.number for batch in _batches(queue, policy) for text in batch]
    assert sorted(taken) == sorted(text.number for text in alone)
    assert not over & set(taken)


@given(calls, policies, st.data())
def test_items_put_back_are_taken_again(
    wanted: list[tuple[str, list[int]]], policy: BatchPolicy, data: st.DataObject
):
    queue = _queue(policy)
    added = _add_all(queue, wanted)
    taken: list[_Text] = []
    while batch := take_packed_batch(queue, policy):
        kept = data.draw(st.integers(1, len(batch)))
        taken += batch[:kept]
        queue.put_back(batch[kept:])
    for caller in _CALLERS:
        assert [text for text in taken if text.caller == caller] == [
            text for text in added if text.caller == caller
        ]


@given(calls, policies)
def test_a_caller_without_texts_leaves_no_state(wanted: list[tuple[str, list[int]]], policy: BatchPolicy):
    queue = _queue(policy)
    _add_all(queue, wanted)
    _batches(queue, policy)
    assert (len(queue._by_caller), len(queue._ring)) == (0, 0)


def test_the_cost_of_a_text_does_not_grow_with_the_queue():
    """Ten times as many callers with ten times as many texts take about a hundred times as long, not more."""

    def seconds(callers: int, texts: int) -> float:
        queue = _queue(BatchPolicy(1024, 0.1, 64))
        for number in range(callers):
            queue.add(str(number), _texts(str(number), [32] * texts))
        started = time.process_time()
        _batches(queue, BatchPolicy(1024, 0.1, 64))
        return time.process_time() - started

    few = min(seconds(20, 20) for _ in range(5))
    assert seconds(200, 200) < 100 * few * 5


def test_totals_of_callers():
    totals = CallerTotals()
    totals.add("one", 100)
    totals.add("two", 30)
    totals.add("one", -60)
    assert (totals.of("one"), totals.of("two"), totals.of("three"), totals.tokens) == (40, 30, 0, 70)
    assert (len(totals), "one" in totals, "three" in totals) == (2, True, False)
    totals.add("one", -40)
    totals.add("two", -30)
    assert (len(totals), totals.tokens) == (0, 0)


def test_of_each_other_caller_as_much_is_ahead_as_the_caller_gets():
    totals = CallerTotals()
    totals.add("huge", 1_000)
    totals.add("small", 5)
    assert totals.ahead_of("new", 50, quantum_tokens=10) == 50 + 5
    assert totals.ahead_of("new", 1, quantum_tokens=10) == 10 + 5
    assert totals.ahead_of("huge", 50, quantum_tokens=10) == 1_000 + 5


def test_a_quantum_can_be_changed_while_items_are_queued():
    queue: DeficitRoundRobinQueue[_Text] = DeficitRoundRobinQueue(1, lambda _: False)
    for caller in ("one", "two"):
        queue.add(caller, _texts(caller, [1] * 6))
    taken = []
    for quantum_tokens in [1] * 2 + [3] * 6:
        queue.quantum_tokens = quantum_tokens
        assert queue.peek() is not None
        taken.append(queue.take().caller)
    # The first caller got its second quantum before the change.
    assert taken == ["one", "two", "one", *["two"] * 3, *["one"] * 2]
