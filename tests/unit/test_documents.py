from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch import documents
from textmatch.documents import (
    Document,
    content_hash,
    document_key,
    document_violations,
    is_passage_point,
    passage_point_id,
    point_id,
    text_hash,
)
from textmatch.errors import InvalidInput, reason_name


def reasons(document: Document) -> dict[str, str]:
    return {one.field: reason_name(one.reason) for one in document_violations(document, "documents[3].")}


def test_a_good_document_has_no_violations():
    document = Document("shutil.rmtree", "递归删除目录 🙂", {"module": "shutil", "tags": ["a", None, 1.5]}, 7)
    assert document_violations(document) == []


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (Document("", "text"), {"documents[3].id": "FIELD_INVALID"}),
        (Document("x" * 513, "text"), {"documents[3].id": "FIELD_INVALID"}),
        (Document("a", " \n\t "), {"documents[3].text": "TEXT_EMPTY"}),
        (Document("a", "x" * (5 << 20)), {"documents[3].text": "TEXT_TOO_LARGE"}),
        (Document("a", "with \0 inside"), {"documents[3].text": "TEXT_INVALID"}),
        (Document("a", "lone \ud800 surrogate"), {"documents[3].text": "TEXT_INVALID"}),
        (Document("a", "b", version=-1), {"documents[3].version": "FIELD_INVALID"}),
        (Document("a", "b", version=2**53), {"documents[3].version": "FIELD_INVALID"}),
        (Document("a", "b", {"x": float("nan")}), {"documents[3].attributes": "FIELD_INVALID"}),
        (Document("a", "b", {"x": "\ud800"}), {"documents[3].attributes": "FIELD_INVALID"}),
        (Document("a", "b", {"x": [2**53]}), {"documents[3].attributes": "FIELD_INVALID"}),
        (Document("a", "b", {"x": "y" * 20_000}), {"documents[3].attributes": "FIELD_INVALID"}),
        (Document("", ""), {"documents[3].id": "FIELD_INVALID", "documents[3].text": "TEXT_EMPTY"}),
    ],
)
def test_each_bad_part_is_named_with_its_reason(document: Document, expected: dict[str, str]):
    assert reasons(document) == expected


def test_attributes_may_be_nested_up_to_the_limit():
    nested: dict[str, object] = {"leaf": 1}
    for _ in range(documents.MAX_ATTRIBUTES_DEPTH - 1):
        nested = {"deeper": nested}
    assert reasons(Document("a", "b", nested)) == {}
    assert reasons(Document("a", "b", {"deeper": nested})) == {"documents[3].attributes": "FIELD_INVALID"}


def test_a_limit_is_told_in_the_message():
    [violation] = document_violations(Document("a", "x" * 5_000_000))
    assert violation.description == "has 5,000,000 bytes of UTF-8; the limit is 4,194,304"


def test_check_texts_names_all_bad_texts_at_once():
    with pytest.raises(InvalidInput) as raised:
        documents.check_texts("texts", ["good", "", "also good", "\0"], max_texts=10)
    assert [violation.field for violation in raised.value.violations] == ["texts[1]", "texts[3]"]


def test_check_texts_refuses_none_and_too_many():
    with pytest.raises(InvalidInput, match="texts: is empty"):
        documents.check_texts("texts", [], max_texts=10)
    with pytest.raises(InvalidInput, match="has 10,000 items; the limit is 10"):
        documents.check_texts("texts", ["a"] * 10_000, max_texts=10)


def test_identity_is_stable_across_processes_and_versions():
    # A change of this value would orphan every stored document.
    assert point_id("shutil.rmtree") == "48226897-07ce-5d4c-aa38-e6baca4f79df"
    assert point_id("a") == point_id("a") != point_id("b")
    assert uuid.UUID(point_id("a")).version == 5


def test_the_points_of_a_document_have_one_key_and_those_of_others_have_another():
    points = [
        passage_point_id(document_id, version, content, number)
        for document_id in ("a", "b")
        for version in (1, 2)
        for content in ("c", "d")
        for number in (1, 2)
    ]
    assert len(set(points)) == len(points)
    assert all(uuid.UUID(one).version == 8 and uuid.UUID(one).variant == uuid.RFC_4122 for one in points)
    assert {document_key(one) for one in points[:8]} == {document_key(point_id("a"))}
    assert {document_key(one) for one in points[8:]} == {document_key(point_id("b"))}
    assert [is_passage_point(one) for one in (points[0], point_id("a"))] == [True, False]


@given(st.text(), st.dictionaries(st.text(), st.integers() | st.text() | st.booleans()))
def test_the_content_hash_depends_on_the_content_alone(text: str, attributes: dict[str, object]):
    one = Document("a", text, attributes, version=1)
    same = Document("b", text, dict(reversed(attributes.items())), version=2)
    other = Document("a", text + "!", attributes, version=1)
    assert content_hash(one) == content_hash(same)
    assert content_hash(one) != content_hash(other)
    assert text_hash(text) != text_hash(text + "!")
