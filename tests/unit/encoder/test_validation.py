from __future__ import annotations

import numpy as np
import pytest

from services.encoder.validation import encode_input, max_message_bytes, method_limits
from textmatch.documents import MAX_TEXT_BYTES
from textmatch.errors import InvalidInput
from textmatch.runtime.request_limits import RequestLimits
from textmatch.types import Truncation
from textmatch.v1 import encoder_service_pb2 as pb


@pytest.mark.parametrize("max_texts", [1, 64])
def test_the_largest_pairs_fit_into_a_message(max_texts: int):
    text = "x" * MAX_TEXT_BYTES
    request = pb.ScoreRequest(pairs=[pb.TextPair(first=text, second=text)] * max_texts, model="m" * 200)
    assert request.ByteSize() <= max_message_bytes(max_texts)


def test_a_limit_larger_than_grpc_knows_is_cut():
    assert max_message_bytes(10**9) == 2**31 - 1


def received(limits: RequestLimits, data: bytes) -> object:
    limits.check(data)
    return limits.parse(data) if limits.parse else None


METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["EncoderService"].methods]


@pytest.mark.parametrize("method", METHODS)
def test_millions_of_empty_texts_are_not_parsed(method: str):
    limits = method_limits(1024)[f"/textmatch.v1.EncoderService/{method}"]
    millions = pb.EncodeRequest(texts=[""] * 2_000_000).SerializeToString()
    if method == "EncodeStream":
        millions = pb.EncodeStreamRequest(request=pb.EncodeRequest.FromString(millions)).SerializeToString()
    with pytest.raises(InvalidInput, match="has more than 10,000 items|the limit of this method is 1,024"):
        received(limits, millions)


def test_what_a_call_may_have_is_parsed():
    limits = method_limits(1024)
    request = pb.EncodeRequest(texts=["text"] * 1024)
    received(limits["/textmatch.v1.EncoderService/Encode"], request.SerializeToString())
    sent = pb.EncodeStreamRequest(request=request)
    stream = limits["/textmatch.v1.EncoderService/EncodeStream"]
    assert received(stream, sent.SerializeToString()) == sent


ROWS = np.array([[3.0, 4.0, 12.0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("fields", "shaped"),
    [
        ({}, [3 / 13, 4 / 13, 12 / 13]),
        ({"normalize": True, "dimension": 2}, [0.6, 0.8]),
        ({"normalize": False}, [3.0, 4.0, 12.0]),
        ({"normalize": False, "dimension": 2}, [3.0, 4.0]),
    ],
)
def test_embeddings_get_the_form_that_the_request_asks_for(fields: dict[str, object], shaped: list[float]):
    wanted = encode_input(pb.EncodeRequest(texts=["x"], **fields), 10)
    assert wanted.shaped(ROWS)[0] == pytest.approx(shaped)


def test_without_a_truncation_the_model_decides():
    assert encode_input(pb.EncodeRequest(texts=["x"]), 10).truncation is None
    request = pb.EncodeRequest(texts=["x"], truncate=pb.TRUNCATION_START)
    assert encode_input(request, 10).truncation is Truncation.START


def test_an_unknown_truncation_is_named():
    with pytest.raises(InvalidInput, match="truncate: has the unknown value 9"):
        encode_input(pb.EncodeRequest(texts=["x"], truncate=9), 10)
