"""Task messages: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textmatch.documents import MAX_VERSION, Document, document_violations
from textmatch.queue import messages
from textmatch.queue.dead_letters import DeadLetter, of_document, of_raw
from textmatch.queue.messages import Envelope, IngestMessage, MalformedMessage, Stamp
from textmatch.queue.producer import encode

_SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text()
_ATTRIBUTES = st.dictionaries(st.text(), st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3)))
_IDS = st.text(min_size=1, max_size=40)
_VERSIONS = st.integers(1, MAX_VERSION)
_WRITES = st.builds(
    Document,
    id=_IDS,
    text=st.text(min_size=1, max_size=200),
    attributes=_ATTRIBUTES,
    version=_VERSIONS,
)
_DOCUMENTS = (_WRITES | st.builds(Document.deletion, _IDS, _VERSIONS)).filter(
    lambda document: not document_violations(document)
)


def envelope(accepted_at: float | None = 1.0, traceparent: str = "") -> Envelope:
    return Envelope("faq", "5f3a9c1e", accepted_at, traceparent)


def decoded(documents: list[Document]) -> list[IngestMessage]:
    """As they come out of the queue, with the versions that they were sent with."""
    return [
        messages.decode(text, Stamp(1_500_000, tuple(one.version for one in batch)))
        for batch, text in encode(documents, envelope(None))
    ]


def message(**changes: Any) -> str:
    content: dict[str, Any] = {
        "schema_version": 2,
        "accepted_at": 12.5,
        "documents": [{"id": "a", "text": "t", "attributes": {}, "version": 1}],
    }
    return json.dumps({**content, **changes})


@settings(deadline=None)
@given(st.lists(_DOCUMENTS, max_size=5))
def test_documents_survive_the_journey(documents: list[Document]):
    read = decoded(documents)
    assert [document for one in read for document in one.documents] == documents
    assert all(one.envelope == envelope(None) and not one.refused for one in read)
    assert {document.accepted_us for one in read for document in one.documents} <= {1_500_000}


def test_attributes_that_look_like_kombus_own_markers_survive():
    document = Document("a", "t", {"x": {"__type__": "datetime", "__value__": "never"}}, 1)
    [read] = decoded([document])
    assert read.documents == (document,)


def test_messages_are_split_by_count_and_by_size():
    small = [Document(f"s{number}", "short", version=1) for number in range(514)]
    assert [len(batch) for batch, _ in encode(small, envelope())] == [256, 256, 2]
    assert [len(one.documents) for one in decoded(small)] == [256, 256, 2]
    large = [Document(f"l{number}", "好" * 10_000, version=1) for number in range(17)]
    sizes = [(len(text.encode()), len(batch)) for batch, text in encode(large, envelope())]
    assert [count for _, count in sizes] == [8, 8, 1]
    assert all(size <= 257 * 1024 for size, _ in sizes)


def test_attributes_may_be_left_out():
    text = message(documents=[{"id": "a", "text": "t", "version": 3}])
    assert messages.decode(text).documents == (Document("a", "t", {}, 3),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("no json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[" * 990 + "]" * 990, "not JSON|must be a JSON object"),
        ("[]", "must be a JSON object"),
        (message(schema_version=1), "schema_version is 1"),
        (message(surprise=1), r"unknown fields \['surprise'\]"),
        ('{"schema_version": 2}', r"lacks \['accepted_at', 'documents'\]"),
        (message(accepted_at="now"), "accepted_at is 'now'"),
        (message(accepted_at=True), "accepted_at is True"),
        (message(accepted_at=float("nan")), "accepted_at is nan"),
        (message(accepted_at=10**400), "accepted_at is 1000"),
        (message(accepted_at=-1), "accepted_at is -1"),
        (message(accepted_at=1e300), "accepted_at is 1e\\+300"),
        (message(collection="No such!"), "collection: is 'No such!'"),
        (message(collection=5), "collection must be a string"),
        (message(collection="a--b"), "not contain --"),
        (message(generation=5), "generation must be a string"),
        (message(documents=[]), "1 to 256"),
        (message(documents={}), "1 to 256"),
        (message(documents=[{}] * 257), "1 to 256"),
    ],
)
def test_a_message_of_another_form_is_refused_whole(text: str, complaint: str):
    with pytest.raises(MalformedMessage, match=complaint):
        messages.decode(text)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (5, "must be a JSON object"),
        ({"id": "b", "text": "t"}, r"lacks \['version'\]"),
        ({"id": "b", "text": "t", "version": 1, "x": 1}, r"unknown fields \['x'\]"),
        ({"id": 5, "text": "t", "version": 1}, "id is 5; it must be a string"),
        ({"id": "b", "text": None, "version": 1}, "text is None"),
        ({"id": "b", "text": "t", "version": True}, "version is True"),
        ({"id": "b", "text": "t", "version": 1.0}, "version is 1.0"),
        ({"id": "b", "text": "\ud800", "version": 1}, "surrogates not allowed"),
        ({"id": "\ud800", "text": "t", "version": 1}, "surrogates not allowed"),
        ({"id": "b", "text": "t", "version": 1, "attributes": []}, r"attributes is \[\]"),
    ],
)
def test_an_entry_of_another_form_is_refused_alone(entry: Any, complaint: str):
    good = {"id": "a", "text": "t", "version": 1}
    decoded = messages.decode(message(documents=[good, entry]))
    assert [document.id for document in decoded.documents] == ["a"]
    [refused] = decoded.refused
    assert refused.document is None
    assert json.loads(refused.raw) == json.loads(message(collection="default", documents=[entry]))
    with pytest.raises(MalformedMessage, match=complaint):
        raise MalformedMessage(refused.error)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"text": " "}, "text: is empty"),
        ({"id": ""}, "id: is empty"),
        ({"id": "x" * 513}, "id: has 513 bytes"),
        ({"text": "a\0b"}, "NUL"),
        ({"version": 0}, "version: is 0"),
        ({"version": MAX_VERSION + 1}, "version: is 9007199254740992"),
        ({"attributes": {"x": float("inf")}}, "attributes: are not JSON"),
    ],
)
def test_an_invalid_document_is_refused_alone_and_by_name(changes: dict[str, Any], complaint: str):
    good = {"id": "a", "text": "t", "version": 1}
    bad = {"id": "b", "text": "t", "version": 1, **changes}
    decoded = messages.decode(message(documents=[bad, good]))
    assert [document.id for document in decoded.documents] == ["a"]
    [refused] = decoded.refused
    assert refused.document is not None
    assert refused.document.id == bad["id"]
    assert complaint in refused.error


def test_a_trace_goes_along_and_may_be_missing():
    document = Document("a", "t", {}, 1)
    traceparent = "00-11111111111111111111111111111111-2222222222222222-01"
    [(_, text)] = encode([document], envelope(None, traceparent))
    assert messages.decode(text, Stamp(1, (1,))).envelope.traceparent == traceparent
    assert messages.decode(message()).envelope.traceparent == ""
    with pytest.raises(MalformedMessage, match="traceparent must be a string"):
        messages.decode(message(traceparent=1))


def test_a_message_names_its_collection_or_means_default():
    [(_, text)] = encode([Document("a", "t", {}, 1)], envelope(None))
    assert messages.decode(text, Stamp(1, (1,))).envelope == Envelope("faq", "5f3a9c1e")
    assert messages.decode(message()).envelope == Envelope("default", "", 12.5)
    refused = messages.decode(message(collection="faq", generation="5f3a9c1e", documents=[5])).refused[0]
    assert messages.decode(refused.raw).envelope == Envelope("faq", "5f3a9c1e", 12.5)


def test_documents_of_another_sender_are_accepted_when_it_says():
    [document] = messages.decode(message(accepted_at=12.5)).documents
    assert document.accepted_us == 12_500_000
    [document] = messages.decode(message(accepted_at=0)).documents
    assert document.accepted_us == 1


def stamped(*entries: Any) -> str:
    return json.dumps({"schema_version": 2, "generation": "5f3a9c1e", "documents": list(entries)})


def test_a_delete_of_another_sender_needs_a_version():
    delete = {"id": "a", "deleted": True, "version": 7}
    [document] = messages.decode(message(documents=[delete])).documents
    assert (document, document.accepted_us) == (Document.deletion("a", 7), 12_500_000)
    for wrong, complaint in (
        ({"id": "a", "deleted": True}, "lacks"),
        ({**delete, "version": 0}, "version: is 0"),
        ({**delete, "deleted": False}, "must be true"),
        ({**delete, "deleted": 1}, "must be true"),
        ({**delete, "text": ""}, "unknown"),
        ({**delete, "id": ""}, "id: is empty"),
    ):
        [refused] = messages.decode(message(documents=[wrong])).refused
        assert complaint in refused.error


def test_a_delete_of_the_matcher_may_have_no_version():
    read = messages.decode(stamped({"id": "a", "deleted": True}, {"id": "b", "text": "t"}), Stamp(5, (0, 0)))
    assert read.documents == (Document.deletion("a"),)
    [refused] = read.refused
    assert "version: is 0" in refused.error


def test_a_stamp_has_the_versions_and_refused_ones_are_skipped():
    entries = [{"id": one, "text": "t"} for one in "abc"]
    read = messages.decode(stamped(*entries), Stamp(5, (7, -1, 9)))
    assert read.documents == (Document("a", "t", {}, 7), Document("c", "t", {}, 9))
    assert messages.decode(stamped(*entries), Stamp(5, (-1, -1, -1))).documents == ()


def test_what_is_refused_of_a_stamped_message_can_be_read_again_as_it_was():
    good, odd, bad = {"id": "a", "text": "t"}, {"id": 5, "text": "t"}, {"id": "b", "text": " "}
    read = messages.decode(stamped(good, odd, bad), Stamp(5, (7, 8, 9)))
    assert [document.id for document in read.documents] == ["a"]
    without_form, invalid = read.refused
    assert without_form.stamp == Stamp(5, (8,))
    assert json.loads(without_form.raw)["documents"] == [odd]
    assert messages.decode(without_form.raw, without_form.stamp).refused == (without_form,)
    assert invalid.document is not None
    assert (invalid.document.version, invalid.document.accepted_us) == (9, 5)


@pytest.mark.parametrize(
    ("fields", "entries", "complaint"),
    [
        ({"accepted_us": 5, "versions": [1]}, 2, "versions has 1 items; documents has 2"),
        ({"accepted_us": 5}, 1, "whole numbers"),
        ({"versions": [1]}, 1, "whole numbers"),
        ({"accepted_us": 0, "versions": [1]}, 1, "whole numbers"),
        ({"accepted_us": 5, "versions": [True]}, 1, "whole numbers"),
        ({"accepted_us": 5, "versions": [-2]}, 1, "whole numbers"),
        ({"accepted_us": MAX_VERSION + 1, "versions": [1]}, 1, "whole numbers"),
    ],
)
def test_a_wrong_stamp_is_refused(fields: dict[str, Any], entries: int, complaint: str):
    with pytest.raises(MalformedMessage, match=complaint):
        messages.decode(stamped(*[{"id": "a", "text": "t"}] * entries), messages.stamp_from_fields(fields))


@pytest.mark.parametrize("depth", [9, 99, 101, 500, 900])
@pytest.mark.parametrize("is_stamped", [False, True])
def test_a_deep_entry_is_refused_alone_and_can_be_kept(depth: int, is_stamped: bool):
    """It raised RecursionError, so that its message came back for ever."""
    good = {"id": "a", "text": "t"}
    deep = {"id": "b", "text": "t", "attributes": {"x": "DEEP"}}
    argument = (
        stamped(good, deep)
        if is_stamped
        else message(documents=[{**one, "version": 1} for one in (good, deep)])
    )
    argument = argument.replace('"DEEP"', "[" * depth + "]" * depth)
    read = messages.decode(argument, Stamp(5, (1, 1)) if is_stamped else None)
    assert [document.id for document in read.documents] == ["a"]
    [refused] = read.refused
    letter = of_document(refused.document, "A", "e") if refused.document else of_raw(refused.raw, "e")
    assert DeadLetter.from_json(letter.key, letter.to_json()) == letter
    again = messages.decode(refused.raw, refused.stamp)
    assert len(again.refused) == 1


@pytest.mark.parametrize(
    "error", [ArithmeticError("e"), RecursionError("e"), MemoryError("e"), KeyError("e")]
)
def test_after_any_error_the_message_is_malformed(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(messages, "_read_entry", fail)
    with pytest.raises(MalformedMessage, match=f"{type(error).__name__}: '?e'?"):
        messages.decode(message())
    monkeypatch.setattr(messages, "_object", fail)
    with pytest.raises(MalformedMessage, match=f"{type(error).__name__}: '?e'?"):
        messages.unpack(b"{}", "queue")
