from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from services.encoder.batching import BatchPolicy, CallContext, EngineModel, Rows
from services.encoder.inference import InferenceRequest, Pipeline, utf8_bytes
from services.encoder.inference_thread import InferenceThread
from services.encoder.scheduler import Scheduler
from tests.support.length_model import SAMPLE, texts_of
from textmatch.errors import DeadlineTooShort, InvalidInput, Overloaded
from textmatch.models.fast_tokenizer import TokenizedText

_CALL = CallContext("anyone", is_bulk=False, deadline=None)


class Running:
    """A pipeline with a queue of 1,000 tokens, whose model fails on texts of some lengths."""

    poison = 13
    # A text of so many tokens does not fit into memory.
    too_large = 61

    def __init__(self) -> None:
        self.scheduler = Scheduler(BatchPolicy(100, 0.1, 10), limit_tokens=1_000)
        self.thread = InferenceThread(self.scheduler, prepare_thread=lambda: None, on_death=lambda _: None)
        self.pipeline = Pipeline(self.scheduler)
        self.model = EngineModel("any", self.forward, SAMPLE, is_packed=True)
        self.occupied: list[int] = []

    def forward(self, batch: Sequence[TokenizedText]) -> Rows:
        self.occupied.append(self.scheduler._interactive.tokens)
        if any(text.token_count == self.poison for text in batch):
            raise RuntimeError("cannot read this")
        if any(text.token_count == self.too_large for text in batch):
            raise MemoryError
        return np.array([[text.token_count] for text in batch], dtype=np.float32)

    def request(self, token_counts: Sequence[int]) -> InferenceRequest:
        """As if each token had four bytes."""
        row_bytes = [4 * count for count in token_counts]
        return InferenceRequest(
            self.model,
            row_bytes,
            max_tokens=64,
            tokenize=lambda start, stop: texts_of(*token_counts[start:stop]),
            name_item="texts[{}]".format,
        )


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    running = Running()
    running.thread.start()
    yield running
    await asyncio.to_thread(running.thread.stop)
    running.pipeline.close()


def test_the_size_of_a_text_is_that_of_its_utf8():
    for text in ("", "the cat", "naïve", "猫坐在垫子上", "🙂"):
        assert utf8_bytes(text) == len(text.encode())


async def test_parts_have_about_so_many_tokens(running: Running):
    request = running.request([30, 30, 30, 62, 5])
    assert request.estimated_tokens(range(5)) == 32 * 3 + 64 + 7
    assert request.parts(1_000) == [range(5)]
    assert request.parts(70) == [range(2), range(2, 3), range(3, 4), range(4, 5)]
    assert request.parts(1) == [range(at, at + 1) for at in range(5)]


async def test_a_call_larger_than_the_queue_is_computed_in_order(running: Running):
    counts = [1 + number % 12 for number in range(2_000)]
    result = await asyncio.wait_for(running.pipeline.compute(running.request(counts), _CALL), 60)
    assert result.rows[:, 0].tolist() == counts
    assert [text.token_count for text in result.texts] == counts
    assert max(running.occupied) <= 500
    assert running.scheduler._interactive.tokens == 0


async def test_calls_larger_than_the_queue_are_computed_beside_others(running: Running):
    counts = [1 + number % 12 for number in range(500)]
    calls = [
        running.pipeline.compute(running.request(counts), CallContext(str(caller), caller % 2 == 1, None))
        for caller in range(4)
    ]
    for result in await asyncio.wait_for(asyncio.gather(*calls), 60):
        assert result.rows[:, 0].tolist() == counts


async def test_the_bad_texts_of_all_parts_are_named(running: Running):
    counts = [12] * 300
    counts[3] = counts[170] = counts[299] = running.poison
    with pytest.raises(InvalidInput) as caught:
        await asyncio.wait_for(running.pipeline.compute(running.request(counts), _CALL), 60)
    assert [one.field for one in caught.value.violations] == ["texts[3]", "texts[170]", "texts[299]"]


async def test_the_texts_to_be_refused_of_all_parts_are_named_and_not_computed(running: Running):
    counts = [12] * 300
    too_long = {3: 90, 170: 65, 299: 1_000}

    def tokenize(start: int, stop: int) -> list[TokenizedText]:
        return [
            replace(text, whole_count=too_long.get(start + at))
            for at, text in enumerate(texts_of(*counts[start:stop]))
        ]

    request = replace(running.request(counts), tokenize=tokenize)
    with pytest.raises(InvalidInput) as caught:
        await asyncio.wait_for(running.pipeline.compute(request, _CALL), 60)
    assert [(one.field, one.description) for one in caught.value.violations] == [
        ("texts[3]", "has 90 tokens; the model reads 12"),
        ("texts[170]", "has 65 tokens; the model reads 12"),
        ("texts[299]", "has 1,000 tokens; the model reads 12"),
    ]
    _check_empty(running)


async def test_all_parts_count_for_the_deadline(running: Running):
    running.scheduler.note_speed(running.model, tokens=1_000, seconds=1.0, is_bulk=False)
    soon = CallContext("anyone", is_bulk=False, deadline=time.monotonic() + 20.0)
    request = running.request([62] * 1_000)
    with pytest.raises(DeadlineTooShort, match="the call 64.00 s"):
        await running.pipeline.compute(request, soon)
    assert running.occupied == []


async def test_a_call_that_does_not_fit_into_memory_ends_and_leaves_nothing(running: Running):
    counts = [12] * 300
    counts[170] = counts[171] = running.too_large
    with pytest.raises(Overloaded, match="not enough memory"):
        await asyncio.wait_for(running.pipeline.compute(running.request(counts), _CALL), 60)
    _check_empty(running)
    result = await running.pipeline.compute(running.request([12] * 300), _CALL)
    assert len(result.rows) == 300


async def test_a_cancelled_call_leaves_nothing(running: Running):
    call = asyncio.create_task(running.pipeline.compute(running.request([12] * 5_000), _CALL))
    async with asyncio.timeout(30):
        while not running.occupied:  # noqa: ASYNC110 -- the thread computes
            await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    _check_empty(running)
    result = await running.pipeline.compute(running.request([5]), _CALL)
    assert result.rows.tolist() == [[5.0]]


def _check_empty(running: Running) -> None:
    lane = running.scheduler._interactive
    assert (lane.texts, lane.tokens, len(lane.text_bytes), lane._loads) == (0, 0, 0, {})
