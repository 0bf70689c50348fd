from __future__ import annotations

import pytest

from services.encoder.validation import max_message_bytes
from textmatch.documents import MAX_TEXT_BYTES
from textmatch.v1 import encoder_service_pb2 as pb


@pytest.mark.parametrize("max_texts", [1, 64])
def test_the_largest_pairs_fit_into_a_message(max_texts: int):
    text = "x" * MAX_TEXT_BYTES
    request = pb.ScoreRequest(pairs=[pb.TextPair(first=text, second=text)] * max_texts, model="m" * 200)
    assert request.ByteSize() <= max_message_bytes(max_texts)


def test_a_limit_larger_than_grpc_knows_is_cut():
    assert max_message_bytes(10**9) == 2**31 - 1
