"""What is done with values: lists, generators, single texts and filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import (
    Document,
    FieldExists,
    FieldMatch,
    FieldRange,
    FieldTimeRange,
    Filter,
    HasId,
    TextMatchClient,
)
from textmatch.errors import ApiKeyInvalid, ApiKeyMissing, InvalidInput
from textmatch.runtime.auth import ApiKeys
from textmatch.v1 import matcher_service_pb2 as pb

DOCUMENTS = [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}]
# Every method that takes a list: with it, and what it gives for DOCUMENTS.
LISTS: dict[str, tuple[Callable[[Any, Any], Any], list[Any], Any]] = {
    "batch_match": (
        lambda client, given: [len(one.result) for one in client.batch_match(given)],
        ["one", "two", "three"],
        [2, 2, 2],
    ),
    "ingest": (
        lambda client, given: [one.id for one in client.ingest(given)],
        [{"id": "c", "text": "three"}, Document("d", "four")],
        ["c", "d"],
    ),
    "ingest_all": (
        lambda client, given: client.ingest_all(given).accepted,
        [{"id": "c", "text": "three"}, Document("d", "four")],
        2,
    ),
    "delete": (lambda client, given: client.delete(given), ["a", "b", "c"], 2),
    "encode": (lambda client, given: len(client.encode(given).embeddings), ["one", "two"], 2),
    "score": (lambda client, given: len(client.score("one", given).scores), ["one", "two"], 2),
    "score_pairs": (lambda client, given: len(client.score_pairs(given).scores), [("one", "two")] * 3, 3),
}
TAKE_A_SINGLE_ONE = {"delete": "a", "encode": "one", "score": "one"}


@pytest.mark.parametrize("method", LISTS)
@pytest.mark.parametrize("kind", [list, tuple, iter, lambda items: (item for item in items)])
def test_any_iterable_is_read_once_and_whole(client: TextMatchClient, method: str, kind: Any):
    client.ingest_all(DOCUMENTS)
    act, items, expected = LISTS[method]
    assert act(client, kind(items)) == expected


@pytest.mark.parametrize("method", LISTS)
@pytest.mark.parametrize(
    "value", ["a text", b"bytes", {"id": "a", "text": "one"}, Document("a", "one"), None, 5]
)
def test_what_is_no_list_is_refused(client: TextMatchClient, method: str, value: Any):
    act = LISTS[method][0]
    if method in TAKE_A_SINGLE_ONE and isinstance(value, str):
        act(client, TAKE_A_SINGLE_ONE[method])
        return
    with pytest.raises(InvalidInput, match=r"^\w+: is (an? \w+|None); it must be a list$"):
        act(client, value)


@pytest.mark.parametrize("method", ["delete", "encode", "score"])
def test_items_that_are_no_strings_are_named(client: TextMatchClient, method: str):
    with pytest.raises(InvalidInput, match=r"^\w+\[1\]: is an int; it must be a string$"):
        LISTS[method][0](client, ["one", 2])


def test_a_query_that_is_no_string_fails_alone(client: TextMatchClient):
    results = list(client.batch_match(["one", 2, None, "two"]))
    assert [str(one.error) if one.error else None for one in results] == [
        None,
        "query: is an int; it must be a string",
        "query: is None; it must be a string",
        None,
    ]


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", "b", "c"), {"a": 1, "b": 2}, ("a", 2)])
def test_what_is_no_pair_is_named(client: TextMatchClient, pair: Any):
    with pytest.raises(InvalidInput, match=r"^pairs\[1\]: is "):
        client.score_pairs([("a", "b"), pair])


RED = FieldMatch("colour", ("red",))
SAME_FILTERS = [
    (None, None),
    (RED, Filter(must=(RED,))),
    (FieldRange("year", gte=2020), Filter(must=(FieldRange("year", gte=2020),))),
    (FieldExists("year"), Filter(must=(FieldExists("year"),))),
    ('colour = "red"', Filter(must=(RED,))),
    ("not year exists", Filter(must_not=(FieldExists("year"),))),
    (FieldMatch("colour", ["red"]), Filter(must=[RED])),
]


def sent_filter(matcher: ScriptedMatcher) -> pb.Filter | None:
    options = matcher.match_requests[-1].options
    return options.filter if options.HasField("filter") else None


@pytest.mark.parametrize(("short", "whole"), SAME_FILTERS)
def test_short_forms_of_a_filter_mean_the_whole_one(
    client: TextMatchClient, matcher: ScriptedMatcher, short: Any, whole: Any
):
    client.match("q", where=short)
    by_short = sent_filter(matcher)
    client.match("q", where=whole)
    assert by_short == sent_filter(matcher)
    if short is not None:
        client.delete_where(short)
        assert matcher.delete_filters == [by_short]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "where: is invalid at character 1"),
        ("colour = red", "where: is invalid at character 10"),
        (5, "where: is an int; it must be a Filter, a condition or a string"),
        ({"colour": "red"}, "where: is a dict; it must be a Filter, a condition or a string"),
        ([RED], "where: is a list; it must be a Filter, a condition or a string"),
        (FieldMatch("colour", "red"), "where.values: is a str; it must be a tuple of values"),
        (HasId("a"), "where.ids: is a str; it must be a tuple of ids"),
        (HasId((1,)), "where.ids[0]: is an int; it must be a string"),
        (FieldTimeRange("at", gte="2024-01-31"), "where.gte: is a str; it must be a datetime; parse_time"),
        (Filter(should=(RED,), min_should="1"), "where.min_should: is a str; it must be a whole number"),
        (FieldMatch("year", 2020), "where.values: is an int; it must be a tuple of values"),
        (Filter(must=RED), "where.must: is a FieldMatch; it must be a tuple of conditions"),
        (Filter(must=(one for one in [RED])), "where.must: is a generator; it must be a tuple of conditions"),
        (Filter(should=("red",)), "where.should[0]: is a str; it must be a condition"),
        (Filter(must=(FieldMatch("colour", "red"),)), "where.must[0].values: is a str; it must be a tuple"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_named(
    client: TextMatchClient, matcher: ScriptedMatcher, where: Any, message: str
):
    for method in (lambda: client.match("q", where=where), lambda: client.delete_where(where)):
        with pytest.raises(InvalidInput) as raised:
            method()
        assert str(raised.value).startswith(message)
    assert (matcher.match_requests, matcher.delete_filters) == ([], [])


@pytest.mark.parametrize("where", [None, Filter(), Filter(should=()), Filter((Filter(),))])
def test_a_delete_of_everything_is_refused(client: TextMatchClient, matcher: ScriptedMatcher, where: Any):
    with pytest.raises(InvalidInput, match="^where: is"):
        client.delete_where(where)
    assert matcher.delete_filters == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": "3"}, "top_k: is a str; it must be a whole number"),
        ({"top_k": 3.0}, "top_k: is a float; it must be a whole number"),
        ({"top_k": True}, "top_k: is a bool; it must be a whole number"),
        ({"min_score": "0.5"}, "min_score: is a str; it must be a number"),
        ({"recall": "sparse"}, "recall: is 'sparse'; it must be one of dense, hybrid"),
        (
            {"rerank": "always"},
            "rerank: is 'always'; it must be one of auto, none, cross-encoder, cascade",
        ),
        ({"explain": 1}, "explain: is an int; it must be True or False"),
    ],
)
def test_options_have_types(client: TextMatchClient, options: dict[str, Any], message: str):
    with pytest.raises(InvalidInput) as raised:
        client.match("q", **options)
    assert str(raised.value) == message


def test_numbers_of_numpy_and_strings_of_enums_are_taken(client: TextMatchClient, matcher: ScriptedMatcher):
    options: dict[str, Any] = {"top_k": np.int64(3), "min_score": np.float32(0.3)}
    client.match("q", **options, recall="hybrid", rerank="none")
    sent = matcher.match_requests[0].options
    assert (sent.top_k, sent.min_score) == (3, float(np.float32(0.3)))
    assert (sent.recall, sent.rerank) == (pb.RECALL_MODE_HYBRID, pb.RERANK_MODE_NONE)


def test_the_key_comes_from_the_environment_unless_it_is_given(
    client_class: type[TextMatchClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    keys = tmp_path / "keys"
    keys.write_text("reader read the-read-key-0123456789\n")
    server = RunningServer.of_matcher(ScriptedMatcher(), api_keys=ApiKeys(keys))
    with client_class(server.address) as keyless, pytest.raises(ApiKeyMissing):
        keyless.ingest_status()
    monkeypatch.setenv("TEXTMATCH_API_KEY", "the-read-key-0123456789")
    with client_class(server.address) as client:
        assert client.ingest_status().document_count == 0
    for key, error in (("", ApiKeyMissing), ("the-other-key-0123456789", ApiKeyInvalid)):
        with client_class(server.address, api_key=key) as client, pytest.raises(error):
            client.ingest_status()
    server.stop()
