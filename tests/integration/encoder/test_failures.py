"""Failures, overload and cancellation in the inference thread, as callers see them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
import numpy as np

from services.encoder.batching import BatchPolicy, EngineModel, Rows
from services.encoder.model_registry import ModelRegistry
from tests.support.encoder_server import serve_encoder
from tests.support.grpc_failures import failure_of
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

Forward = Callable[[Sequence[TokenizedText]], Rows]


def _wrapped(models: ModelRegistry, wrap: Callable[[Forward], Forward], **changes: object) -> ModelRegistry:
    """The same models, with a wrapper around each forward pass."""

    def wrapped(model: EngineModel) -> EngineModel:
        return replace(model, forward=wrap(model.forward), **changes)

    return ModelRegistry(
        [replace(entry, engine_model=wrapped(entry.engine_model)) for entry in models.bi_encoders],
        [replace(entry, engine_model=wrapped(entry.engine_model)) for entry in models.cross_encoders],
    )


class Gate:
    """Blocks forward passes until it is opened; records their sizes."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.sizes: list[int] = []

    def wrap(self, forward: Forward) -> Forward:
        def held(batch: Sequence[TokenizedText]) -> Rows:
            self.sizes.append(len(batch))
            self.entered.set()
            assert self.opened.wait(30)
            return forward(batch)

        return held

    async def wait_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 30)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- the condition changes in a server
            await asyncio.sleep(0.005)


def _poisoned_by(poison_tokens: int) -> Callable[[Forward], Forward]:
    def wrap(forward: Forward) -> Forward:
        def failing(batch: Sequence[TokenizedText]) -> Rows:
            if any(text.token_count == poison_tokens for text in batch):
                raise RuntimeError("cannot read this")
            return forward(batch)

        return failing

    return wrap


async def test_a_poisoned_text_fails_alone(models: ModelRegistry):
    poison = "cat " * 20
    async with serve_encoder(_wrapped(models, _poisoned_by(22))) as encoder:
        good = [encoder.stub.Encode(pb.EncodeRequest(texts=["the cat"] * 5)) for _ in range(8)]
        bad = encoder.stub.Encode(pb.EncodeRequest(texts=["the cat", poison, "dog", poison]))
        failure = await failure_of(bad)
        responses = await asyncio.gather(*good)
        again = await encoder.stub.Encode(pb.EncodeRequest(texts=["the cat", "dog"]))
        assert encoder.deaths == []
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT")
    assert failure.fields == [("texts[1]", "TEXT_FAILED"), ("texts[3]", "TEXT_FAILED")]
    assert [len(response.token_counts) for response in responses] == [5] * 8
    assert len(again.token_counts) == 2


async def test_a_poisoned_pair_is_named(models: ModelRegistry):
    pairs = [pb.TextPair(first="cat", second="dog"), pb.TextPair(first="cat " * 10, second="dog " * 9)]
    async with serve_encoder(_wrapped(models, _poisoned_by(22))) as encoder:
        failure = await failure_of(encoder.stub.Score(pb.ScoreRequest(pairs=pairs)))
        cosine = pb.ScoreRequest(query="cat", texts=["cat " * 20, "dog"], scorer=pb.SCORER_COSINE)
        by_cosine = await failure_of(encoder.stub.Score(cosine))
    assert failure.fields == [("pairs[1]", "TEXT_FAILED")]
    assert by_cosine.fields == [("texts[0]", "TEXT_FAILED")]


async def test_a_broken_engine_fails_all_callers_and_none_hangs(models: ModelRegistry):
    def wrap(_: Forward) -> Forward:
        def broken(batch: Sequence[TokenizedText]) -> Rows:
            raise RuntimeError("the device is gone")

        return broken

    async with serve_encoder(_wrapped(models, wrap)) as encoder:
        calls = [
            failure_of(encoder.stub.Encode(pb.EncodeRequest(texts=["cat"] * 3), timeout=5)) for _ in range(4)
        ]
        calls += [failure_of(encoder.stub.Score(pb.ScoreRequest(query="cat", texts=["dog"]), timeout=5))]
        failures = await asyncio.wait_for(asyncio.gather(*calls), 20)
        assert len(encoder.deaths) == 1
    assert {(failure.code, failure.reason) for failure in failures} == {
        (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
    }
    assert all(failure.retry_seconds for failure in failures)


async def test_a_cancelled_call_is_not_computed(models: ModelRegistry):
    gate = Gate()
    async with serve_encoder(_wrapped(models, gate.wrap)) as encoder:
        first = encoder.stub.Encode(pb.EncodeRequest(texts=["cat"]))
        await gate.wait_entered()
        cancelled = encoder.stub.Encode(pb.EncodeRequest(texts=["dog"] * 7))
        last = encoder.stub.Encode(pb.EncodeRequest(texts=["park"] * 2))
        await _until(lambda: encoder.scheduler._interactive.texts == 9)
        cancelled.cancel()
        await _until(lambda: encoder.scheduler._interactive.texts == 2)
        gate.opened.set()
        await asyncio.gather(first, last)
    assert gate.sizes == [1, 2]


async def test_texts_queued_past_their_deadline_are_not_computed(models: ModelRegistry):
    gate = Gate()
    async with serve_encoder(_wrapped(models, gate.wrap)) as encoder:
        first = encoder.stub.Encode(pb.EncodeRequest(texts=["cat"]))
        await gate.wait_entered()
        late = await failure_of(encoder.stub.Encode(pb.EncodeRequest(texts=["dog"] * 7), timeout=0.05))
        gate.opened.set()
        await first
        await encoder.stub.Encode(pb.EncodeRequest(texts=["park"] * 2))
    assert late.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert gate.sizes == [1, 2]


async def test_overload_is_refused_with_a_retry_delay(models: ModelRegistry):
    gate = Gate()
    async with serve_encoder(
        _wrapped(models, gate.wrap, tokens_per_second=1_000), queue_tokens=500
    ) as encoder:
        running = encoder.stub.Encode(pb.EncodeRequest(texts=["cat"]))
        await gate.wait_entered()
        queued = [encoder.stub.Encode(pb.EncodeRequest(texts=["cat"] * 80)) for _ in range(2)]
        await _until(lambda: encoder.scheduler._interactive.texts == 160)
        refused = await failure_of(encoder.stub.Encode(pb.EncodeRequest(texts=["dog " * 30])))
        bulk = encoder.stub.Encode(pb.EncodeRequest(texts=["dog " * 30], priority=pb.PRIORITY_BULK))
        too_late = await failure_of(encoder.stub.Encode(pb.EncodeRequest(texts=["x"]), timeout=0.3))
        gate.opened.set()
        answered = await asyncio.gather(running, *queued, bulk)
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert refused.message == "480 interactive tokens are queued; the limit is 500"
    assert refused.retry_seconds is not None
    assert 0.4 < refused.retry_seconds < 0.6
    assert too_late.reason == "DEADLINE_TOO_SHORT"
    assert [len(response.token_counts) for response in answered] == [1, 80, 80, 1]


async def test_a_call_larger_than_the_queue_is_answered_beside_others(models: ModelRegistry):
    texts = [f"the cat {number} sits" for number in range(400)]
    async with serve_encoder(models, queue_tokens=500) as encoder:
        huge = encoder.stub.Encode(pb.EncodeRequest(texts=texts))
        small = [encoder.stub.Encode(pb.EncodeRequest(texts=texts[:10])) for _ in range(3)]
        responses = await asyncio.gather(huge, *small)
        expected = [await encoder.stub.Encode(pb.EncodeRequest(texts=texts[at : at + 10])) for at in (0, 390)]
    assert [len(response.token_counts) for response in responses] == [400, *[10] * 3]
    rows = [np.frombuffer(response.embeddings, dtype="<f4").reshape(-1, 32) for response in responses]
    ends = [np.frombuffer(response.embeddings, dtype="<f4").reshape(-1, 32) for response in expected]
    np.testing.assert_allclose(rows[0][:10], ends[0], atol=1e-5)
    np.testing.assert_allclose(rows[0][390:], ends[1], atol=1e-5)


async def test_every_bad_text_of_a_call_larger_than_the_queue_is_named(models: ModelRegistry):
    texts = ["the cat"] * 600
    texts[7] = texts[333] = texts[599] = "cat " * 20
    async with serve_encoder(_wrapped(models, _poisoned_by(22)), queue_tokens=500) as encoder:
        failure = await failure_of(encoder.stub.Encode(pb.EncodeRequest(texts=texts)))
    assert [field for field, _ in failure.fields] == ["texts[7]", "texts[333]", "texts[599]"]


async def test_an_interactive_call_is_answered_while_bulk_texts_are_tokenized(models: ModelRegistry):
    """The first text of a bulk call holds its tokenizer thread; nothing of that call is computed."""
    entered, opened = threading.Event(), threading.Event()
    entry = models.bi_encoders[0]

    class Held:
        def __getattr__(self, name: str) -> object:
            return getattr(entry.model, name)

        def tokenize(self, texts: Sequence[str], **options: Any) -> list[TokenizedText]:
            if texts[0].startswith("bulk"):
                entered.set()
                assert opened.wait(30)
            return entry.model.tokenize(texts, **options)

    held = ModelRegistry([replace(entry, model=Held())], [])
    bulk_texts = ["bulk " + "the cat sits " * 2_500] * 32
    async with serve_encoder(held) as encoder:
        bulk = [
            encoder.stub.Encode(pb.EncodeRequest(texts=bulk_texts, priority=pb.PRIORITY_BULK))
            for _ in range(4)
        ]
        assert await asyncio.to_thread(entered.wait, 30)
        text = "the dog runs in the park " * 90
        answer = await asyncio.wait_for(encoder.stub.Encode(pb.EncodeRequest(texts=[text])), 30)
        assert not any(call.done() for call in bulk)
        opened.set()
        answers = await asyncio.gather(*bulk)
    assert list(answer.truncated) == [True]
    assert [len(one.token_counts) for one in answers] == [32] * 4


async def test_interactive_calls_overtake_bulk_and_bulk_still_ends(models: ModelRegistry):
    order: list[str] = []

    async def call(stub: object, name: str, request: pb.EncodeRequest) -> None:
        await stub.Encode(request)
        order.append(name)

    gate = Gate()
    policy = BatchPolicy(token_budget=256, bulk_share=0.1, forward_cost_tokens=64)
    async with serve_encoder(_wrapped(models, gate.wrap), policy=policy) as encoder:
        first = asyncio.ensure_future(encoder.stub.Encode(pb.EncodeRequest(texts=["cat"])))
        await gate.wait_entered()
        bulk_request = pb.EncodeRequest(texts=["the cat sits"] * 500, priority=pb.PRIORITY_BULK)
        bulk = asyncio.create_task(call(encoder.stub, "bulk", bulk_request))
        interactive = [
            asyncio.create_task(call(encoder.stub, "interactive", pb.EncodeRequest(texts=["the dog"] * 20)))
            for _ in range(10)
        ]
        lanes = encoder.scheduler._interactive, encoder.scheduler._bulk
        await _until(lambda: [lane.texts for lane in lanes] == [200, 500])
        gate.opened.set()
        await asyncio.wait_for(asyncio.gather(first, bulk, *interactive), 30)
    assert order == ["interactive"] * 10 + ["bulk"]


async def test_a_small_call_is_in_the_next_batch_behind_a_long_queue_of_another(models: ModelRegistry):
    gate, batches = Gate(), []

    def note(forward: Forward) -> Forward:
        def noted(batch: Sequence[TokenizedText]) -> Rows:
            batches.append({text.token_count for text in batch})
            return forward(batch)

        return noted

    policy = BatchPolicy(token_budget=256, bulk_share=0.1, forward_cost_tokens=64)
    async with serve_encoder(_wrapped(_wrapped(models, gate.wrap), note), policy=policy) as encoder:
        huge = [encoder.stub.Encode(pb.EncodeRequest(texts=["the cat sits"] * 1_000))]
        await gate.wait_entered()
        huge += [encoder.stub.Encode(pb.EncodeRequest(texts=["the dog"] * 64)) for _ in range(50)]
        # All of them: a later one would be mistaken for the small call.
        queued_before = 1_000 - gate.sizes[0] + 50 * 64
        await _until(lambda: encoder.scheduler._interactive.texts == queued_before)
        # Channels of one process share their connections by default.
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(encoder.address, own_connection) as channel:
            small = pb_grpc.EncoderServiceStub(channel).Encode(pb.EncodeRequest(texts=["a cat in the park"]))
            await _until(lambda: encoder.scheduler._interactive.texts == queued_before + 1)
            gate.opened.set()
            answer = await asyncio.wait_for(small, 30)
        answers = await asyncio.wait_for(asyncio.gather(*huge), 60)
    assert [number for number, batch in enumerate(batches) if answer.token_counts[0] in batch] == [1]
    assert len(batches) > 50
    assert [len(one.token_counts) for one in answers] == [1_000, *[64] * 50]


async def test_the_event_loop_stays_free_while_the_engine_works(models: ModelRegistry):
    gate = Gate()
    async with serve_encoder(_wrapped(models, gate.wrap)) as encoder:
        running = encoder.stub.Encode(pb.EncodeRequest(texts=["x" * 30_000] * 100))
        await gate.wait_entered()
        answer = await asyncio.wait_for(encoder.stub.GetModels(pb.GetModelsRequest()), 5)
        gate.opened.set()
        response = await running
    assert len(answer.models) == 3
    assert np.frombuffer(response.embeddings, dtype="<f4").size == 3_200
