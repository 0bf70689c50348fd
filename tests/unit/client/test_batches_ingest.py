from __future__ import annotations

import itertools
import time
import uuid
from collections import deque
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest

from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import (
    Document,
    DocumentState,
    FieldMatch,
    IngestOutcome,
    IngestStatus,
    ServerUnreachable,
    TextMatchClient,
)
from textmatch.client import asyncio as client_module
from textmatch.client import batches as batches_module
from textmatch.client.batches import WatchedQueue
from textmatch.errors import (
    DeadlinePassed,
    DependencyUnavailable,
    DocumentNotFound,
    InternalError,
    InvalidInput,
    Overloaded,
    Unauthenticated,
)


def numbered(count: int) -> Iterator[Document]:
    return (Document(f"d{number}", f"text {number}") for number in range(count))


def test_every_document_gets_one_result(client: TextMatchClient, matcher: ScriptedMatcher):
    results = list(client.ingest(numbered(1_050)))
    assert sorted(result.position for result in results) == list(range(1_050))
    assert {result.outcome for result in results} == {IngestOutcome.ACCEPTED}
    assert all(result.id == f"d{result.position}" for result in results)
    assert len(matcher.documents) == 1_050
    assert matcher.batch_sizes == [200] * 5 + [50]


def test_only_a_few_batches_are_held(client: TextMatchClient):
    taken = 0

    def counted() -> Iterator[Document]:
        nonlocal taken
        for document in numbered(10_000):
            taken += 1
            yield document

    results = client.ingest(counted())
    list(itertools.islice(results, 300))
    held = batches_module.DocumentStream.max_items * (batches_module.DocumentStream.max_in_flight + 2)
    assert 300 <= taken <= 300 + held
    results.close()


def test_batches_are_cut_by_size(client: TextMatchClient, matcher: ScriptedMatcher):
    documents = [Document(str(number), "x" * 30_000) for number in range(200)]
    assert client.ingest_all(documents).accepted == 200
    assert len(matcher.batch_sizes) == 2


def test_repeating_an_ingest_changes_nothing(client: TextMatchClient):
    client.ingest_all(numbered(10))
    summary = client.ingest_all(numbered(11))
    assert (summary.accepted, summary.unchanged, summary.rejected) == (1, 10, 0)


BAD_DOCUMENTS = [
    ({"id": "a"}, "text: is missing"),
    ({"id": "a", "text": ""}, "text: is empty"),
    ({"id": "a", "text": "\ud800"}, "text: is not Unicode text: lone surrogate at character 0"),
    ({"id": "a", "text": "nul \0"}, "text: contains a NUL character at character 4"),
    ({"id": "a", "text": "x" * 5_000_000}, "text: has 5,000,000 bytes of UTF-8; the limit is 4,194,304"),
    ({"id": 5, "text": "t"}, "id: is a number; it must be a string"),
    ({"id": "i" * 513, "text": "t"}, "id: has 513 bytes of UTF-8; the limit is 512"),
    ({"id": "a", "text": ["t"]}, "text: is a list; it must be a string"),
    ({"id": "a", "text": "t", "tags": []}, "tags: is not a field of a document"),
    ({"id": "a", "text": "t", "version": True}, "version: is a boolean; it must be a whole number"),
    ({"id": "a", "text": "t", "version": -1}, "version: is -1; it must be 1 to 9007199254740991"),
    (
        {"id": "a", "text": "t", "attributes": {"n": 2**60}},
        f"attributes: contain {2**60}; integers are exact only up to 2^53-1",
    ),
    ({"id": "a", "text": "t", "attributes": {1: "x"}}, "attributes: has the key 1; keys must be strings"),
    ({"id": "a", "text": "t", "attributes": [1]}, "attributes: is a list; it must be an object"),
    (["id", "text"], "document: is a list; it must be an object"),
    (Document("a", None), "text: is missing"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("bad", "message"), BAD_DOCUMENTS)
def test_a_bad_document_is_named_and_its_neighbours_go_in(
    client: TextMatchClient, matcher: ScriptedMatcher, bad: Any, message: str
):
    results = list(client.ingest([Document("before", "t"), bad, Document("after", "t")]))
    [rejected] = [result for result in results if result.outcome is IngestOutcome.REJECTED]
    assert rejected.position == 1
    assert isinstance(rejected.error, InvalidInput)
    assert str(rejected.error) == message
    assert set(matcher.documents) == {"before", "after"}


@pytest.mark.parametrize("value", [date(2024, 3, 1), b"bytes", {"set"}, float("nan"), "\ud800"])
def test_attributes_that_json_does_not_have_are_refused(client: TextMatchClient, value: Any):
    [result] = client.ingest([{"id": "a", "text": "t", "attributes": {"value": value}}])
    assert isinstance(result.error, InvalidInput)
    assert str(result.error).startswith("attributes")


def test_what_the_matcher_rejects_is_reported(client: TextMatchClient, matcher: ScriptedMatcher):
    matcher.document_errors["d3"] = deque([InternalError("internal error; request id 7")])
    summary = client.ingest_all(numbered(5))
    assert (summary.accepted, summary.rejected) == (4, 1)
    assert summary.rejections[0].position == 3
    assert str(summary.rejections[0].error) == "internal error; request id 7"


def test_a_full_queue_is_waited_for(client: TextMatchClient, matcher: ScriptedMatcher):
    refusal = Overloaded("the queue is full", retry_delay_seconds=0.01)
    matcher.document_errors["d3"] = deque([refusal, refusal])
    matcher.call_errors.append(refusal)
    assert client.ingest_all(numbered(5)).accepted == 5
    assert sorted(matcher.batch_sizes) == [1, 1, 5]


def test_all_tries_of_a_request_have_one_id_and_requests_have_different_ones(
    client: TextMatchClient, matcher: ScriptedMatcher
):
    """So a retry of a write or delete without a version keeps the version of the first try."""
    lost = DependencyUnavailable("the answer was lost")
    matcher.call_errors.extend([lost, lost])
    client.ingest_all(numbered(5))
    client.ingest_all(numbered(250))
    matcher.call_errors.append(lost)
    client.delete(["d1", "d2"])
    client.delete_where(FieldMatch("colour", ("red",)))
    ingested, deleted = matcher.request_ids[:5], matcher.request_ids[5:]
    assert len(ingested[:3]) == 3
    assert [len(set(ids)) for ids in (ingested[:3], ingested, deleted[:2], deleted)] == [1, 3, 1, 2]
    assert all(uuid.UUID(one).version == 4 for one in matcher.request_ids)


def test_patience_ends(client: TextMatchClient, matcher: ScriptedMatcher, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "_STALL_TIMEOUT_SECONDS", 0.2)
    refusal = Overloaded("the queue is full", retry_delay_seconds=0.05)
    matcher.call_errors.extend([refusal] * 100)
    with pytest.raises(Overloaded, match="the queue is full"):
        client.ingest_all(numbered(5))
    assert len(matcher.call_errors) > 90


def test_the_later_of_two_documents_with_one_id_is_sent_later(
    client: TextMatchClient, matcher: ScriptedMatcher
):
    matcher.document_errors["same"] = deque([Overloaded("full", retry_delay_seconds=0.01)])
    documents = [Document("same", "old"), Document("other", "t"), Document("same", "new")]
    results = list(client.ingest(documents))
    assert [result.position for result in results if result.id == "same"] == [0, 2]
    assert matcher.documents["same"].text == "new"


def test_a_matcher_that_comes_back_gets_the_rest(
    matcher: ScriptedMatcher, monkeypatch: pytest.MonkeyPatch, client_class: type[TextMatchClient]
):
    monkeypatch.setattr(batches_module, "_MAX_BACKOFF_SECONDS", 0.05)
    server = RunningServer.of_matcher(matcher)
    with client_class(server.address) as client:
        client.ingest_status()

        def documents() -> Iterator[Document]:
            nonlocal server
            for number, document in enumerate(numbered(1_200)):
                if number == 1_000:  # after the first answer, the address is known to be right
                    port = int(server.address.rpartition(":")[2])
                    server.stop()
                    server = RunningServer.of_matcher(matcher, port)
                yield document

        summary = client.ingest_all(documents())
    server.stop()
    assert summary.accepted + summary.unchanged == 1_200
    assert len(matcher.documents) == 1_200


def test_a_matcher_that_was_never_there_is_reported_soon(client_class: type[TextMatchClient]):
    with (
        client_class("127.0.0.1:1") as client,
        pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1 does not answer"),
    ):
        client.ingest_all(numbered(1))


def test_errors_that_no_retry_mends_are_raised_at_once(client: TextMatchClient, matcher: ScriptedMatcher):
    matcher.call_errors.append(Unauthenticated("no key"))
    with pytest.raises(Unauthenticated, match="no key"):
        client.ingest_all(numbered(1))


def test_waiting_ends_when_all_that_waits_is_younger(client: TextMatchClient, matcher: ScriptedMatcher):
    matcher.queued.extend([(40, 9.0), (30, 9.1), (500, 0.001)])
    seen: list[int] = []
    client.wait_until_searchable(lambda status: seen.append(status.queued_count))
    assert seen == [40, 30, 500]


def test_an_age_of_a_clock_that_was_set_back_ends_no_waiting(
    client: TextMatchClient, matcher: ScriptedMatcher
):
    matcher.queued.extend([(40, 9.0), (40, 0.0), (40, 0.0), (0, 0.0)])
    seen: list[int] = []
    client.wait_until_searchable(lambda status: seen.append(status.queued_count))
    assert seen == [40, 40, 40, 0]


def test_waiting_does_not_last_for_ever(
    client: TextMatchClient, matcher: ScriptedMatcher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_module, "_STALL_TIMEOUT_SECONDS", 0.1)
    matcher.queued.extend([(7, 9.0)] * 100)
    with pytest.raises(DeadlinePassed, match="7 documents are queued"):
        client.ingest_all([], wait=True)


def test_waiting_goes_on_while_the_queue_cannot_be_read_and_says_why(
    client: TextMatchClient, matcher: ScriptedMatcher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_module, "_LAST_POLL_SECONDS", 0.05)
    gone = DependencyUnavailable("Qdrant does not answer", retry_delay_seconds=0.0)
    matcher.call_errors.extend([gone] * 40)
    matcher.queued.extend([(3, 9.0), (0, 0.0)])
    problems: list[str] = []
    client.wait_until_searchable(on_problem=problems.append)
    assert problems == ["Qdrant does not answer"]


def test_waiting_goes_on_while_workers_wait_for_an_operator(
    client: TextMatchClient, matcher: ScriptedMatcher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_module, "_STALL_TIMEOUT_SECONDS", 0.1)
    matcher.queued.extend([(7, 9.0)] * 10)
    matcher.problems = ["Qdrant has no space left"]
    problems: list[str] = []
    client.wait_until_searchable(on_problem=problems.append)
    assert problems == ["Qdrant has no space left"]


def test_waiting_ends_when_the_queue_cannot_be_read_for_long(
    client: TextMatchClient, matcher: ScriptedMatcher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_module, "_STALL_TIMEOUT_SECONDS", 0.1)
    matcher.call_errors.extend([DependencyUnavailable("gone", retry_delay_seconds=0.0)] * 1_000)
    with pytest.raises(DependencyUnavailable, match="gone"):
        client.wait_until_searchable()
    matcher.call_errors.clear()
    matcher.call_errors.append(Unauthenticated("no key"))
    with pytest.raises(Unauthenticated):
        client.wait_until_searchable()


def test_get_and_delete(client: TextMatchClient, matcher: ScriptedMatcher):
    client.ingest_all(numbered(2_500))
    stored = client.get_document("d7")
    assert (stored.id, stored.text) == ("d7", "text 7")
    matcher.batch_sizes.clear()
    assert client.delete([f"d{number}" for number in range(2_501)]) == 2_500
    assert matcher.batch_sizes == [1_000, 1_000, 501]
    with pytest.raises(DocumentNotFound, match='no document "d7"'):
        client.get_document("d7")


@pytest.mark.parametrize("bad_id", ["", "\ud800", "x" * 513])
def test_ids_are_checked_before_sending(client: TextMatchClient, bad_id: str):
    with pytest.raises(InvalidInput, match=r"ids\[1\]"):
        client.delete(["good", bad_id])
    with pytest.raises(InvalidInput, match="id: "):
        client.get_document(bad_id)


def test_status_of_the_queue_and_of_one_document(client: TextMatchClient, matcher: ScriptedMatcher):
    client.ingest_all(numbered(2))
    matcher.queued.append((3, 1.5))
    status = client.ingest_status()
    assert (status.document_count, status.queued_count, status.oldest_queued_seconds) == (2, 3, 1.5)
    assert (status.dead_letter_count, status.collection) == (1, "default")
    assert status.model_id == "tiny-0123456789ab"
    assert status.document_state is None
    assert client.ingest_status("d1").document_state is DocumentState.INDEXED
    failed = client.ingest_status("lost")
    assert (failed.document_state, failed.document_error) == (DocumentState.FAILED, "the model failed on it")


def test_a_dependency_that_is_down_is_told_from_a_matcher_that_is_down(
    client: TextMatchClient, matcher: ScriptedMatcher
):
    matcher.call_errors.extend([DependencyUnavailable("Redis does not answer")] * 8)
    with pytest.raises(DependencyUnavailable, match="Redis does not answer") as raised:
        client.ingest_status()
    assert not isinstance(raised.value, ServerUnreachable)


def status_of(queued_count: int) -> IngestStatus:
    return IngestStatus(
        document_count=0,
        queued_count=queued_count,
        oldest_queued_seconds=1e6,
        dead_letter_count=0,
        collection="default",
        model_id="",
    )


def test_a_queue_that_stands_still_is_told_and_given_up_at_last():
    told: list[str] = []
    queue = WatchedQueue(float("inf"), told.append, stall_timeout_seconds=120.0)
    start = time.monotonic()
    for minutes in (0, 1, 3, 5):
        assert queue.is_waiting(status_of(7), start + 60.0 * minutes)
    assert told == [
        "7 documents are queued, and their number has not changed for 120 seconds; are the workers running?",
        "7 documents are queued, and their number has not changed for 240 seconds; are the workers running?",
    ]
    # A document of the largest size takes minutes.
    assert queue.is_waiting(status_of(6), start + 900.0)
    with pytest.raises(DeadlinePassed, match=r"6 documents are queued, .* for 960 seconds"):
        queue.is_waiting(status_of(6), start + 900.0 + 961.0)
