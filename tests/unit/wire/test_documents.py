"""Documents on the wire: attributes to and from protobuf's Struct."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzzing import length_delimited
from textmatch.documents import Document, attributes_violation
from textmatch.errors import InvalidInput
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import (
    IngestRequest,
    from_struct,
    ingest_request_from_proto,
    ingest_response_to_proto,
    to_document,
    to_proto,
    to_struct,
)

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer())
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), _VALUES, max_size=4))
def test_attributes_survive_the_journey(attributes: dict[str, Any]):
    assert from_struct(to_struct(attributes)) == attributes


@pytest.mark.parametrize(
    ("number", "expected"),
    [(3.0, 3), (-0.0, 0), (2.0**53 - 1, 2**53 - 1), (2.0**53, 2.0**53), (1e300, 1e300), (0.5, 0.5)],
)
def test_whole_numbers_become_int_while_a_double_is_exact(number: float, expected: float):
    struct = Struct()
    struct.update({"n": number})
    value = from_struct(struct)["n"]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_json_is_left_for_the_check_to_name(number: float):
    struct = Struct()
    struct.update({"n": number})
    assert attributes_violation("attributes", from_struct(struct)) is not None


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"a": [0, {"b": 2**53}]}, r"attributes\.a\[1\]\.b: is 9007199254740992; integers are exact"),
        ({"a": [[1, 2, {3}]]}, r"attributes\.a\[0\]\[2\]: is a set; JSON has no such type"),
        ({"a": {1: 2}}, r"attributes\.a: has the key 1; keys must be strings"),
    ],
)
def test_a_value_that_cannot_be_sent_is_named_by_its_path(attributes: dict[str, Any], message: str):
    with pytest.raises(InvalidInput, match=f"^{message}"):
        to_struct(attributes)


async def test_documents_are_read_one_by_one_and_each_bad_one_is_named():
    numbers = {"n": [0] * 5_000}
    good = Document("good", "text", numbers, 7)
    messages = [
        to_proto(good),
        pb.Document(id="big text", text="x" * 5_000_000),
        pb.Document(id="many values", text="t", attributes=to_struct({"n": [0] * 10_000})),
        pb.Document(id="values", text="t", attributes=to_struct({"n": [0] * 7_000})),
        pb.Document(id="x" * 600, text="y" * 5_000_000),
        pb.Document(text="no id"),
        to_proto(Document("last", "text")),
    ]
    request = IngestRequest(pb.IngestDocumentsRequest(documents=messages).SerializeToString())
    documents, rejections = await ingest_request_from_proto(request)
    assert documents == {0: good, 6: Document("last", "text")}
    assert [(one.position, one.id, str(one.error).partition(";")[0]) for one in rejections] == [
        (1, "big text", "documents[1]: has 5,000,015 bytes as a message"),
        (2, "many values", "documents[2]: has 110,034 bytes as a message without its text"),
        (3, "values", "documents[3].attributes: have 21,007 bytes as JSON"),
        (4, "", "documents[4]: has 5,000,608 bytes as a message"),
        (5, "", "documents[5].id: is empty"),
    ]


async def test_deletes_survive_the_journey_and_have_no_text():
    deletes = [to_document(Document.deletion("a", 7)), to_document({"id": "b", "deleted": True})]
    assert deletes == [Document.deletion("a", 7), Document.deletion("b")]
    messages = [*map(to_proto, deletes), pb.Document(id="c", text="t", deleted=True)]
    request = IngestRequest(pb.IngestDocumentsRequest(documents=messages).SerializeToString())
    documents, [rejected] = await ingest_request_from_proto(request)
    assert documents == dict(enumerate(deletes))
    assert "documents[2].text: is given, but the document is deleted" in str(rejected.error)
    assert to_document({"id": "d", "text": "t", "deleted": False}) == Document("d", "t")
    for wrong, complaint in (
        ({"id": "a", "deleted": True, "text": "t"}, "text: is given"),
        ({"id": "a", "deleted": True, "attributes": {"n": 1}}, "attributes: is given"),
        ({"id": "a", "deleted": 1, "text": "t"}, "deleted: is a number; it must be a boolean"),
        ({"id": "a", "deleted": False}, "text: is missing"),
    ):
        with pytest.raises(InvalidInput, match=complaint):
            to_document(wrong)


async def test_a_document_that_cannot_be_parsed_is_rejected_alone():
    deep = b"\x1a\x01x"
    for _ in range(200):
        deep = length_delimited(6, length_delimited(1, deep))
    attributes = length_delimited(3, length_delimited(1, length_delimited(2, deep)))
    documents = [
        length_delimited(1, b"deep") + attributes,
        to_proto(Document("good", "text")).SerializeToString(),
        b"\x0a\x05",
        b"\xff",
    ]
    request = IngestRequest(b"".join(length_delimited(1, one) for one in documents))
    accepted, rejections = await ingest_request_from_proto(request)
    assert accepted == {1: Document("good", "text")}
    assert [(one.position, one.id) for one in rejections] == [(0, "deep"), (2, ""), (3, "")]
    assert all("must be a protobuf message of the type Document" in str(one.error) for one in rejections)
    with pytest.raises(DecodeError):
        IngestRequest(b"\x0a\x05")


def test_a_request_that_is_read_slowly_names_its_collection_as_the_message_does():
    message = pb.IngestDocumentsRequest(collection="faq", request_id="7", documents=[pb.Document(id="a")])
    request = IngestRequest(message.SerializeToString())
    assert (request.collection, request.request_id, len(request)) == ("faq", "7", 1)
    # As in protobuf, the last one counts.
    twice = message.SerializeToString() + pb.IngestDocumentsRequest(collection="other").SerializeToString()
    assert (
        IngestRequest(twice).collection == pb.IngestDocumentsRequest.FromString(twice).collection == "other"
    )
    assert IngestRequest(b"").collection == ""


async def test_the_results_of_documents_with_long_ids_fit_into_what_clients_accept():
    message = pb.IngestDocumentsRequest(
        documents=[pb.Document(id=f"{number}" + "字" * 2_700, text=" ") for number in range(1_000)]
    )
    request = IngestRequest(message.SerializeToString())
    _, rejections = await ingest_request_from_proto(request)
    assert len(rejections) == 1_000
    assert rejections[7].id == "7" + "字" * 170
    response = ingest_response_to_proto(rejections)
    assert response.ByteSize() < 4_000_000
