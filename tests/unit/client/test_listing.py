"""Pages and many ids, as both clients read them."""

from __future__ import annotations

import pytest

from tests.support.scripted_servicer import ScriptedMatcher
from textmatch.client import DocumentState, FieldMatch, TextMatchClient
from textmatch.errors import InvalidInput, Overloaded
from textmatch.v1 import matcher_service_pb2 as pb


@pytest.fixture
def stored(client: TextMatchClient, matcher: ScriptedMatcher) -> list[str]:
    """The ids of documents that are stored, on pages of three."""
    matcher.page_limit = 3
    ids = [f"{number:02}" for number in range(10)]
    client.ingest_all({"id": one, "text": f"text {one}", "attributes": {"n": 1}} for one in ids)
    matcher.batch_sizes.clear()
    return ids


def test_all_pages_are_read(client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str]):
    assert [one.id for one in client.list_documents()] == stored
    assert [one.page_token for one in matcher.list_requests] == ["", "02", "05", "08"]
    assert {one.collection for one in matcher.list_requests} == {"default"}


def test_pages_are_read_as_far_as_the_caller_goes(
    client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str]
):
    listed = client.list_documents()
    assert matcher.list_requests == []
    assert [next(listed).id for _ in range(3)] == stored[:3]
    assert len(matcher.list_requests) == 1
    listed.close()


@pytest.mark.parametrize("limit", [1, 3, 4, 10, 11])
def test_a_limit_is_kept(client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str], limit: int):
    assert [one.id for one in client.list_documents(limit=limit)] == stored[:limit]
    assert len(matcher.list_requests) == min(4, -(-limit // 3))


def test_a_list_goes_on_after_any_id(client: TextMatchClient, stored: list[str]):
    assert [one.id for one in client.list_documents(after="07")] == ["08", "09"]
    assert [one.id for one in client.list_documents(after="075")] == ["08", "09"]


def test_what_is_asked_for_is_sent(client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str]):
    [first] = client.list_documents("n = 1", limit=1, omit_text=True, omit_attributes=True)
    assert (first.text, first.attributes) == ("", {})
    [request] = matcher.list_requests
    assert request.filter.must[0].match.field == "n"
    matcher.matching_count = 4
    assert client.count_documents(FieldMatch("n", (1,))) == 4
    assert client.count_documents() == 10


def test_an_error_in_the_middle_of_a_list_is_raised(
    client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str]
):
    listed = client.list_documents()
    assert [next(listed).id for _ in range(3)] == stored[:3]
    matcher.call_errors.append(Overloaded("later", retry_delay_seconds=1.0))
    with pytest.raises(Overloaded):
        next(listed)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_at_least_one(client: TextMatchClient, limit: int):
    for method in (client.list_documents, client.list_dead_letters):
        with pytest.raises(InvalidInput, match=rf"^limit: is {limit}; it must be at least 1"):
            method(limit=limit)


def test_documents_come_in_the_order_of_their_ids_in_several_calls(
    client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str]
):
    asked = ["09", "x", "00", "y", "05"]
    found = client.get_documents(asked)
    assert [one.id for one in found.documents] == ["09", "00", "05"]
    assert found.missing_ids == ("x", "y")
    # The first call answers three of the ids.
    assert matcher.batch_sizes == [5, 2]
    assert [one.id for one in client.get_documents("03").documents] == ["03"]
    assert client.get_documents([]).documents == ()


def test_states_come_in_the_order_of_the_ids_in_several_calls(client: TextMatchClient, stored: list[str]):
    asked = ["09", "x", *(f"lost {number}" for number in range(1_000)), "00"]
    states = client.document_states(asked)
    assert [one.id for one in states] == asked
    assert [one.state for one in states[:2]] == [DocumentState.INDEXED, DocumentState.FAILED]
    assert (states[1].version, states[1].error) == (7, "the model failed on it")
    assert states[-1].state is DocumentState.INDEXED
    assert client.document_states("03")[0].id == "03"
    assert client.document_states([]) == ()


@pytest.fixture
def letters(matcher: ScriptedMatcher) -> list[str]:
    matcher.page_limit = 2
    for one in ("a", "b", "c"):
        matcher.dead_letters[one] = pb.DeadLetter(
            id=one, reason="TEXT_FAILED", error="e", text="t", version=7
        )
    matcher.unreadable["m"] = pb.DeadLetter(id="m", reason="MALFORMED", raw="{")
    return ["a", "b", "c"]


def test_dead_letters_are_listed_replayed_and_dropped(
    client: TextMatchClient, matcher: ScriptedMatcher, letters: list[str]
):
    assert [one.id for one in client.list_dead_letters()] == letters
    assert [one.id for one in client.list_dead_letters(limit=2)] == ["a", "b"]
    [first, *_] = client.list_dead_letters()
    assert (first.reason, first.text, first.version, first.raw) == ("TEXT_FAILED", "t", 7, None)
    assert client.replay_dead_letters(["a", "missing"]) == 1
    assert matcher.replayed == ["a"]
    assert client.drop_dead_letters("b") == 1
    assert [one.id for one in client.list_dead_letters()] == ["c"]


def test_unreadable_messages_are_apart(client: TextMatchClient, matcher: ScriptedMatcher, letters: list[str]):
    [message] = client.list_dead_letters(unreadable=True)
    assert (message.id, message.text, message.raw) == ("m", None, "{")
    assert client.drop_dead_letters(["m"]) == 0
    assert client.replay_dead_letters(["m"], unreadable=True) == 1
    assert list(client.list_dead_letters(unreadable=True)) == []


def test_any_number_of_ids_is_sent_in_parts(client: TextMatchClient, matcher: ScriptedMatcher):
    assert client.drop_dead_letters(str(number) for number in range(2_001)) == 0
    assert matcher.batch_sizes == [1_000, 1_000, 1]
