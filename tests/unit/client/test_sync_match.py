from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import (
    DegradedReason,
    Document,
    FieldExists,
    FieldMatch,
    FieldRange,
    Filter,
    Recall,
    Rerank,
    ServerUnreachable,
    TextMatchClient,
)
from textmatch.errors import DeadlinePassed, InvalidInput, Overloaded
from textmatch.score_fusion import ScoreModel
from textmatch.v1 import matcher_service_pb2 as pb


def test_matches_come_best_first_as_plain_values(client: TextMatchClient):
    client.ingest_all(
        [
            {"id": "a", "text": "one two", "attributes": {"year": 2024, "tags": ["x", None]}},
            Document("b", "one two three"),
        ]
    )
    result = client.match("one two three", top_k=2)
    assert [match.document.id for match in result] == ["b", "a"]
    assert len(result) == 2
    assert result.matches[1].document.attributes == {"year": 2024, "tags": ["x", None]}
    assert isinstance(result.matches[1].document.attributes["year"], int)
    assert result.matches[0].score == pytest.approx(1.0)
    assert result.matches[0].rerank_score == pytest.approx(1.0)
    assert result.query == "one two three"
    assert result.degraded is None
    assert result.timings.total_ms == 7.0
    assert result.cross_encoder_model_id == "pair-0123456789ab"


def test_without_rerank_there_are_no_rerank_scores(client: TextMatchClient):
    client.ingest_all([{"id": "a", "text": "one"}])
    result = client.match("one", rerank=False)
    assert result.matches[0].rerank_score is None
    assert result.cross_encoder_model_id is None


def test_what_was_asked_for_reaches_the_matcher_and_comes_back(
    client: TextMatchClient, matcher: ScriptedMatcher
):
    client.ingest_all([{"id": "a", "text": "one"}])
    result = client.match("one", recall=Recall.HYBRID, rerank=Rerank.CASCADE, rerank_depth=7, explain=True)
    options = matcher.match_requests[0].options
    assert (options.recall, options.rerank) == (pb.RECALL_MODE_HYBRID, pb.RERANK_MODE_CASCADE)
    assert (options.rerank_depth, options.explain) == (7, True)
    assert (result.recall, result.candidate_count, result.scored_count) == (Recall.HYBRID, 1, 1)
    explanation = result.matches[0].explanation
    assert explanation is not None
    assert (explanation.cosine, explanation.pair_classifier_score) == (0.75, None)
    assert explanation.weights == ScoreModel(-1.0, cosine=2.0, lexical=0.5, pair=0.25)
    for rerank, expected in (
        (None, pb.RERANK_MODE_AUTO),
        (True, pb.RERANK_MODE_CROSS_ENCODER),
        (False, pb.RERANK_MODE_NONE),
    ):
        client.match("one", rerank=rerank)
        assert matcher.match_requests[-1].options.rerank == expected
    client.match("one")
    options = matcher.match_requests[-1].options
    assert options.rerank == pb.RERANK_MODE_AUTO
    assert (options.recall, options.rerank_depth, options.explain) == (pb.RECALL_MODE_UNSPECIFIED, 0, False)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (pb.DEGRADED_REASON_RERANK_LATE, DegradedReason.RERANK_LATE),
        (pb.DEGRADED_REASON_RERANK_UNAVAILABLE, DegradedReason.RERANK_UNAVAILABLE),
        (99, DegradedReason.OTHER),
    ],
)
def test_degraded_answers_say_why(
    client: TextMatchClient, matcher: ScriptedMatcher, value: Any, reason: DegradedReason
):
    matcher.degraded = value
    assert client.match("one").degraded is reason


def test_options_and_filters_reach_the_matcher(client: TextMatchClient, matcher: ScriptedMatcher):
    where = Filter(
        must=(FieldMatch("lang", ("en", "")), FieldRange("year", gte=2020, lt=2025)),
        should=(FieldExists("author.name"), Filter(must_not=(FieldMatch("draft", (True,)),))),
    )
    client.match("q", top_k=3, candidate_count=50, min_score=0.25, where=where, omit_text=True)
    [request] = matcher.match_requests
    options = request.options
    assert (options.top_k, options.candidate_count, options.min_score) == (3, 50, 0.25)
    assert options.omit_text
    assert not options.omit_attributes
    assert options.filter.must[0].match.field == "lang"
    assert [value.string_value for value in options.filter.must[0].match.values] == ["en", ""]
    assert options.filter.must[1].range.gte == 2020
    assert not options.filter.must[1].range.HasField("gt")
    assert options.filter.should[0].exists.field == "author.name"
    assert options.filter.should[1].filter.must_not[0].match.values[0].bool_value is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": "\ud800"}, "query: is not Unicode text: lone surrogate at character 0"),
        ({"query": "q", "top_k": 0}, "top_k: is 0; it must be 1 to 1,000"),
        (
            {"query": "q", "top_k": 20, "candidate_count": 10},
            "candidate_count: is 10; it must be 20 to 1,000",
        ),
        ({"query": "q", "min_score": float("nan")}, "min_score: is nan; it must be 0 to 1"),
        (
            {"query": "q", "where": Filter(must=(FieldMatch("a", ("\ud800",)),))},
            "where.must[0].values[0]: is not Unicode text: lone surrogate at character 0",
        ),
    ],
)
def test_what_cannot_be_sent_is_named_before_sending(
    client: TextMatchClient, matcher: ScriptedMatcher, arguments: dict[str, Any], message: str
):
    with pytest.raises(InvalidInput) as raised:
        client.match(**arguments)
    assert str(raised.value) == message
    assert matcher.match_requests == []


def test_batch_match_cuts_long_lists_and_keeps_positions(client: TextMatchClient, matcher: ScriptedMatcher):
    client.ingest_all([{"id": "a", "text": "one"}])
    queries = [f"query {number}" for number in range(230)]
    queries[150] = "fail"
    matcher.batch_sizes.clear()
    results = {result.query_index: result for result in client.batch_match(queries, top_k=1)}
    assert matcher.batch_sizes == [100, 100, 30]
    assert sorted(results) == list(range(230))
    assert results[229].result is not None
    assert results[229].result.query == "query 229"
    assert results[150].result is None
    assert isinstance(results[150].error, InvalidInput)


def test_a_dead_server_is_named_by_its_address(
    client: TextMatchClient, matcher_server: RunningServer, client_class: type[TextMatchClient]
):
    with client_class(matcher="127.0.0.1:1") as lonely:
        started = time.monotonic()
        with pytest.raises(ServerUnreachable, match=r"^the matcher at 127\.0\.0\.1:1 does not answer$"):
            lonely.match("q")
        assert time.monotonic() - started < 10


def test_a_server_of_another_kind_is_named(
    encoder_server: RunningServer, client_class: type[TextMatchClient]
):
    with (
        client_class(matcher=encoder_server.address) as client,
        pytest.raises(Exception, match="is not a textmatch matcher"),
    ):
        client.match("q")


def test_errors_of_the_server_come_back_as_they_were(client: TextMatchClient, matcher: ScriptedMatcher):
    matcher.call_errors.append(Overloaded("too much", retry_delay_seconds=2.5))
    with pytest.raises(Overloaded, match="too much") as raised:
        client.match("q")
    assert raised.value.retry_delay_seconds == 2.5


def test_a_deadline_says_who_was_late_and_how_long_we_waited(
    matcher_server: RunningServer, matcher: ScriptedMatcher, client_class: type[TextMatchClient]
):
    matcher.delay_seconds = 5.0
    with (
        client_class(matcher_server.address, timeout_seconds=0.1) as client,
        pytest.raises(DeadlinePassed, match=r"the matcher at .* did not answer within 0\.1 seconds"),
    ):
        client.match("q")


def test_a_document_is_the_query(client: TextMatchClient, matcher: ScriptedMatcher):
    result = client.match(document_id="a", exclude_ids=(one for one in "bc"), group_by="author.name")
    [request] = matcher.match_requests
    assert (request.query, request.document_id) == ("", "a")
    assert list(request.options.exclude_ids) == ["b", "c"]
    assert (request.options.group_by, request.options.require_complete) == ("author.name", False)
    assert result.query == "a"
    client.match("q", exclude_ids="b", require_complete=True)
    assert list(matcher.match_requests[-1].options.exclude_ids) == ["b"]
    assert matcher.match_requests[-1].options.require_complete


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "query: is empty"),
        ({"query": "a", "document_id": "b"}, "document_id: give either a query or a document_id"),
        ({"document_id": "x" * 513}, "document_id: has 513 bytes"),
        ({"query": "a", "exclude_ids": ["b"] * 1_001}, "exclude_ids: has 1,001 ids; the limit is 1,000"),
        ({"query": "a", "exclude_ids": ["b", ""]}, "exclude_ids[1]: is empty"),
        ({"query": "a", "exclude_ids": [1]}, "exclude_ids[0]: is an int; it must be a string"),
        ({"query": "a", "exclude_ids": None}, "exclude_ids: is None; it must be a list"),
        ({"query": "a", "group_by": ["b"]}, "group_by: is a list; it must be a string"),
        ({"query": "a", "group_by": "tags[]"}, "group_by: must be parts joined by dots"),
        ({"query": "a", "require_complete": 1}, "require_complete: is an int; it must be True or False"),
    ],
)
def test_a_query_and_its_limits(
    client: TextMatchClient, matcher: ScriptedMatcher, options: dict[str, Any], problem: str
):
    with pytest.raises(InvalidInput) as raised:
        client.match(**options)
    assert problem in str(raised.value)
    assert matcher.match_requests == []
