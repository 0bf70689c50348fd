"""Batch matching that survives: what is asked again, in which order answers come, and when it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest

from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import ServerUnreachable, TextMatchClient
from textmatch.client import asyncio as client_module
from textmatch.client import batches as batches_module
from textmatch.errors import DependencyUnavailable, InvalidInput, NotReady, Overloaded, PermissionDenied

QUERIES = [f"query {number}" for number in range(250)]


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "_MAX_BACKOFF_SECONDS", 0.05)


def positions(client: TextMatchClient, queries: list[str]) -> list[int]:
    return [one.query_index for one in client.batch_match(queries) if one.error is None]


def test_results_come_in_the_order_of_the_queries(client: TextMatchClient):
    """The server answers each call backwards."""
    results = list(client.batch_match(QUERIES))
    assert [one.query_index for one in results] == list(range(250))
    assert [one.result.query for one in results if one.result is not None] == QUERIES


@pytest.mark.parametrize("answered", [0, 1, 50, 99])
def test_unanswered_queries_are_asked_again(client: TextMatchClient, matcher: ScriptedMatcher, answered: int):
    matcher.answers_before_error = answered
    matcher.batch_errors.extend([None, DependencyUnavailable("gone"), NotReady("draining"), None])
    assert positions(client, QUERIES) == list(range(250))
    left = 100 - answered
    again = max(left - answered, 0)
    assert matcher.batch_sizes == [100, 100, left, *([again] if again else []), 50]


def test_a_query_that_is_refused_for_now_is_asked_again(client: TextMatchClient, matcher: ScriptedMatcher):
    refusal = Overloaded("busy", retry_delay_seconds=0.01)
    matcher.query_errors = {"query 7": deque([refusal, refusal]), "query 8": deque([refusal])}
    assert positions(client, QUERIES[:20]) == list(range(20))
    assert matcher.batch_sizes == [20, 2, 1]


def test_a_query_that_stays_refused_while_others_are_answered_comes_with_its_error(
    client: TextMatchClient, matcher: ScriptedMatcher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_module, "_STALL_TIMEOUT_SECONDS", 0.2)
    matcher.query_errors = {"query 7": deque([Overloaded("busy")] * 100)}
    results = list(client.batch_match(QUERIES[:120]))
    assert [one.query_index for one in results if one.error is not None] == [7]
    assert isinstance(results[7].error, Overloaded)
    assert len(results) == 120


@pytest.mark.parametrize("by_query", [True, False])
def test_a_matcher_that_answers_nothing_ends_it(
    client: TextMatchClient, matcher: ScriptedMatcher, monkeypatch: pytest.MonkeyPatch, by_query: bool
):
    monkeypatch.setattr(client_module, "_STALL_TIMEOUT_SECONDS", 0.2)
    gone = DependencyUnavailable("Qdrant does not answer")
    if by_query:
        matcher.query_errors = {query: deque([gone] * 100) for query in QUERIES[100:]}
    else:
        matcher.batch_errors.extend([None, *[gone] * 100])
    seen: list[int] = []
    with pytest.raises(DependencyUnavailable, match="Qdrant does not answer"):
        seen.extend(one.query_index for one in client.batch_match(QUERIES))
    assert matcher.batch_sizes[:2] == [100, 100]


def test_errors_that_no_retry_mends_are_raised_at_once(client: TextMatchClient, matcher: ScriptedMatcher):
    matcher.batch_errors.extend([None, PermissionDenied("no")])
    results = client.batch_match(QUERIES)
    assert [next(results).query_index for _ in range(100)] == list(range(100))
    with pytest.raises(PermissionDenied):
        next(results)
    assert matcher.batch_sizes == [100, 100]


def test_an_invalid_query_costs_that_query_only(client: TextMatchClient, matcher: ScriptedMatcher):
    queries = ["good", " ", "fail", "\ud800", "x" * 40_000, "good"]
    results = list(client.batch_match(queries))
    assert [one.query_index for one in results] == list(range(6))
    assert [type(one.error) for one in results] == [type(None), *[InvalidInput] * 4, type(None)]
    assert str(results[1].error) == "query: is empty"
    assert matcher.batch_sizes == [3]


def test_queries_are_read_as_far_as_results(client: TextMatchClient):
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"query {taken}"

    results = client.batch_match(endless())
    assert taken == 0
    assert [next(results).query_index for _ in range(150)] == list(range(150))
    assert taken <= 301
    results.close()


def test_a_matcher_that_was_never_there_is_reported_soon(client_class: type[TextMatchClient]):
    with client_class("127.0.0.1:1") as client, pytest.raises(ServerUnreachable):
        list(client.batch_match(["a"]))


def test_queries_survive_a_restart_of_the_matcher(
    matcher: ScriptedMatcher, client_class: type[TextMatchClient]
):
    server = RunningServer.of_matcher(matcher)
    with client_class(server.address) as client:
        results = client.batch_match(QUERIES)
        seen = [next(results).query_index for _ in range(10)]
        port = int(server.address.rpartition(":")[2])
        server.stop()
        server = RunningServer.of_matcher(matcher, port)
        seen += [one.query_index for one in results]
    server.stop()
    assert seen == list(range(250))


def test_options_are_sent_with_every_call(client: TextMatchClient, matcher: ScriptedMatcher):
    matcher.batch_errors.extend([DependencyUnavailable("gone")])
    client.ingest_all([{"id": "a", "text": "query"}, {"id": "b", "text": "query"}])
    results = list(client.batch_match(QUERIES[:150], top_k=1))
    assert {len(one.result) for one in results if one.result} == {1}
