"""Match while the encoder or Qdrant hangs, is killed or comes back: an answer, or an error, in time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.encoder import make_tiny_bi_encoder, make_tiny_cross_encoder
from tests.support.stack import Stack, running_stack, wait_until
from textmatch.client import DegradedReason, MatchResult, Recall
from textmatch.errors import DeadlinePassed, DependencyUnavailable, NotReady, TextMatchError

# What a busy machine may take to hand an answer over.
SLACK_SECONDS = 2.0
TEXTS = {f"d{number}": f"the cat number {number} sits on the mat" for number in range(50)}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("trouble")
    make_tiny_bi_encoder(directory / "bi")
    make_tiny_cross_encoder(directory / "cross")
    environment = {
        "TEXTMATCH_BI_ENCODER": str(directory / "bi"),
        "TEXTMATCH_CROSS_ENCODER": str(directory / "cross"),
    }
    with running_stack(directory / "data", environment) as running:
        with running.client() as client:
            assert client.match("a cat").matches == ()
            client.ingest_all(({"id": key, "text": text} for key, text in TEXTS.items()), wait=True)
        yield running


@contextmanager
def hung(stack: Stack, name: str) -> Iterator[None]:
    pids = stack.pids(name)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def timed_match(
    stack: Stack, query: str, timeout_seconds: float, recall: Recall | None = None
) -> MatchResult:
    """Match, and see that the answer or the error came in time."""
    with stack.client(timeout_seconds) as client:
        started = time.monotonic()
        try:
            return client.match(query, rerank=True, **({"recall": recall} if recall else {}))
        finally:
            assert time.monotonic() - started < timeout_seconds + SLACK_SECONDS


def test_a_whole_answer_comes_from_both_kinds_of_recall_and_scores_pairs(stack: Stack):
    result = timed_match(stack, "cat number 7", 20.0)
    assert (result.recall, result.degraded) == (Recall.HYBRID, None)
    assert (result.candidate_count, result.scored_count) == (50, 40)
    assert all(match.rerank_score is not None for match in result)


def test_a_query_longer_than_the_model_is_answered(stack: Stack):
    result = timed_match(stack, "number 7 cat " * 2_000, 20.0)
    assert result.degraded is None
    assert len(result) == 10


def test_words_alone_answer_while_the_encoder_hangs(stack: Stack):
    with hung(stack, "encoder"):
        result = timed_match(stack, "number 23 asked while it hangs", 3.0)
        assert (result.degraded, result.scored_count) == (DegradedReason.ENCODE_LATE, 0)
        assert result.matches[0].document.id == "d23"
        with pytest.raises(DeadlinePassed):
            timed_match(stack, "number 24 asked while it hangs", 1.0, Recall.DENSE)


def test_an_embedding_that_is_known_is_used_while_the_encoder_hangs(stack: Stack):
    whole = timed_match(stack, "cat number 8", 20.0)
    with hung(stack, "encoder"):
        result = timed_match(stack, "cat number 8", 3.0)
    assert (result.degraded, result.scored_count) == (DegradedReason.RERANK_LATE, 0)
    best = sorted(whole, key=lambda match: -match.recall_score)[0]
    assert result.matches[0].recall_score == pytest.approx(best.recall_score, abs=1e-4)


def test_a_qdrant_that_hangs_is_an_error_in_time(stack: Stack):
    with hung(stack, "qdrant"), pytest.raises((DeadlinePassed, DependencyUnavailable)):
        timed_match(stack, "cat number 9", 1.0)
    assert len(timed_match(stack, "cat number 9", 20.0)) == 10


@pytest.mark.parametrize("victim", ["encoder", "qdrant"])
def test_under_load_every_call_ends_in_time_while_a_process_is_killed_and_comes_back(
    stack: Stack, victim: str
):
    before = stack.pid(victim)
    outcomes: list[MatchResult | TextMatchError] = []
    is_over = threading.Event()

    def call(number: int) -> None:
        count = 0
        while not is_over.is_set():
            count += 1
            try:
                outcomes.append(timed_match(stack, f"cat number {number} {victim} {count}", 2.0))
            except TextMatchError as error:
                outcomes.append(error)
                time.sleep(0.05)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    stack.kill(victim)
    wait_until(lambda: stack.pid(victim) not in (0, before), f"{victim} to be back", seconds=90)

    def is_whole() -> bool:
        return bool(outcomes) and isinstance(outcomes[-1], MatchResult) and outcomes[-1].degraded is None

    wait_until(is_whole, "a whole answer", seconds=60)
    is_over.set()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    errors = [outcome for outcome in outcomes if isinstance(outcome, TextMatchError)]
    allowed = (DependencyUnavailable, NotReady, DeadlinePassed)
    assert [error for error in errors if not isinstance(error, allowed)] == []
    assert len(outcomes) > len(errors)
