from __future__ import annotations

import time

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from textmatch.errors import InvalidInput
from textmatch.runtime.request_limits import RequestLimits, raw_fields
from textmatch.v1 import matcher_service_pb2 as pb


@given(st.lists(st.text(max_size=300), max_size=5), st.integers(0, 2**63 - 1))
def test_fields_are_found_where_they_are(ids: list[str], version: int):
    request = pb.DeleteDocumentsRequest(ids=ids, version=version, filter=pb.Filter(min_should=3))
    data = request.SerializeToString()
    found = [(one.number, data[one.start : one.end]) for one in raw_fields(data, 100)]
    assert [content.decode() for number, content in found if number == 1] == ids
    assert (2, pb.Filter(min_should=3).SerializeToString()) in found
    assert [number for number, _ in found].count(3) == 1


@given(st.binary(max_size=30))
def test_any_bytes_end_in_fields_or_an_error(data: bytes):
    try:
        fields = list(raw_fields(data, 100))
    except DecodeError:
        return
    assert all(one.start <= one.end <= len(data) for one in fields)


def test_limits_are_checked_before_anything_is_parsed():
    limits = RequestLimits(1_000, max_fields=3, part_bytes={2: 100})
    limits.check(b"")
    limits.check(pb.DeleteDocumentsRequest(ids=["a", "b", "c"]).SerializeToString())
    for request, message in (
        (pb.DeleteDocumentsRequest(ids=["x" * 1_000]), "has 1,003 bytes; the limit of this method is 1,000"),
        (pb.DeleteDocumentsRequest(ids=["a"] * 4), "has more than 3 items"),
    ):
        with pytest.raises(InvalidInput, match=f"request: {message}"):
            limits.check(request.SerializeToString())
    part = pb.DeleteDocumentsRequest(filter={"must": [{"exists": {"field": "x" * 60}}]}).SerializeToString()
    limits.check(part)
    with pytest.raises(InvalidInput, match="request: has more than 100 bytes in the field 2"):
        limits.check(part + part)


@pytest.mark.parametrize("data", [b"\x0a\x05a", b"\x0a", b"\xff" * 20, b"\x0b\x0c", b"\x0d\x00"])
def test_what_is_no_message_is_told(data: bytes):
    with pytest.raises(DecodeError):
        RequestLimits(1_000).check(data)


def test_a_request_of_millions_of_items_is_refused_quickly():
    started = time.thread_time()
    with pytest.raises(InvalidInput, match="has more than 10,000 items"):
        RequestLimits(10**7).check(b"\x0a\x00" * 4_000_000)
    assert time.thread_time() - started < 0.5
