"""EncodeStream over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.support.encoder_server import EncoderServer
from tests.support.grpc_failures import Failure
from textmatch import vectors
from textmatch.v1 import encoder_service_pb2 as pb


def _batch(*texts: str) -> pb.EncodeStreamRequest:
    return pb.EncodeStreamRequest(request=pb.EncodeRequest(texts=texts, priority=pb.PRIORITY_BULK))


async def test_answers_come_in_the_order_of_the_requests(encoder: EncoderServer):
    sizes = [400, 1, 30, 2, 200, 1]
    requests = [_batch(*["the cat sits on the mat"] * size) for size in sizes]
    responses = [response async for response in encoder.stub.EncodeStream(iter(requests))]
    assert [len(response.response.token_counts) for response in responses] == sizes
    rows = vectors.unpack(responses[0].response.embeddings, 32)
    assert rows[0] == pytest.approx(vectors.unpack(responses[1].response.embeddings, 32)[0], abs=1e-5)


async def test_a_bad_batch_in_the_middle_fails_alone(encoder: EncoderServer):
    requests = [_batch("the cat"), _batch("a dog", "", "x\0"), pb.EncodeStreamRequest(), _batch("the park")]
    responses = [response async for response in encoder.stub.EncodeStream(iter(requests))]
    assert [response.WhichOneof("result") for response in responses] == [
        "response",
        "error",
        "error",
        "response",
    ]
    bad_texts, no_texts = Failure(), Failure()
    bad_texts.read(responses[1].error)
    no_texts.read(responses[2].error)
    assert (bad_texts.code, bad_texts.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT")
    assert bad_texts.fields == [("texts[1]", "TEXT_EMPTY"), ("texts[2]", "TEXT_INVALID")]
    assert no_texts.fields == [("texts", "FIELD_INVALID")]


async def test_an_answer_does_not_wait_for_the_next_batch(encoder: EncoderServer):
    call = encoder.stub.EncodeStream()
    for size in (1, 2, 3):
        await call.write(_batch(*["the cat"] * size))
        response = await asyncio.wait_for(call.read(), 10)
        assert len(response.response.token_counts) == size
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_few_batches_are_read_ahead_of_a_reader_that_does_not_read(encoder: EncoderServer):
    sent = 0

    async def endless() -> AsyncIterator[pb.EncodeStreamRequest]:
        nonlocal sent
        while True:
            # Large enough that gRPC's own buffers hold only a few.
            yield _batch(*["x" * 30_000] * 10)
            sent += 1

    call = encoder.stub.EncodeStream(endless())
    await asyncio.sleep(0.5)
    assert sent < 100
    call.cancel()


async def test_a_stream_without_batches_ends(encoder: EncoderServer):
    assert [response async for response in encoder.stub.EncodeStream(iter([]))] == []
