"""An encoder that dies: of a text, but not for ever; or of anything else, which no text pays for."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.integration.ingest.indexing import IngestState
from tests.integration.ingest.mortal_encoder import DEADLY_TEXT, SLOW_TEXT, MortalEncoder
from tests.integration.ingest.waiting import eventually
from tests.integration.ingest.worker_process import WorkerProcess
from tests.support.collections import CONFIG
from textmatch.documents import Document
from textmatch.encoder_client import EncoderClient, EncoderCrashed
from textmatch.errors import DependencyUnavailable
from textmatch.index.index import Index

OPTIONS = {"is_query": False, "is_bulk": True, "timeout_seconds": 10.0}


@pytest.fixture
def mortal() -> Iterator[MortalEncoder]:
    encoder = MortalEncoder(f"tiny-{uuid.uuid4().hex[:12]}")
    yield encoder
    encoder.stop()


async def settled(state: IngestState) -> bool:
    return (await state.pending.summary()).count == 0


@pytest.mark.slow
async def test_a_text_that_kills_the_encoder_ends_in_the_dead_letters(
    state: IngestState, index: Index, mortal: MortalEncoder, start_worker: Callable[..., WorkerProcess]
):
    worker = start_worker(TEXTMATCH_ENCODER_TARGET=mortal.target)
    deadly = Document("deadly", DEADLY_TEXT, version=1)
    others = [Document(f"d{number}", f"text {number}", version=1) for number in range(12)]
    await state.producer.enqueue(CONFIG, [*others[:5], deadly, *others[5:]])
    await eventually(lambda: settled(state), "all to be settled", seconds=150)
    [letter] = await state.dead_letters.entries(10)
    assert (letter.document, letter.reason) == (deadly, "TEXT_FAILED")
    assert "the encoder disconnected 3 times" in letter.error
    assert set(await index.fetch([one.id for one in others])) == {one.id for one in others}
    # Twice for the batch, once for each half, three times alone; gRPC itself may try again in between.
    assert 7 <= mortal.deaths <= 20
    assert worker.stop() == 0


@pytest.mark.slow
async def test_no_text_pays_for_an_encoder_that_is_killed_or_away(
    state: IngestState, index: Index, mortal: MortalEncoder, start_worker: Callable[..., WorkerProcess]
):
    start_worker(TEXTMATCH_ENCODER_TARGET=mortal.target)
    await state.producer.enqueue(
        CONFIG, [Document("a", SLOW_TEXT, version=1), Document("b", "text", version=1)]
    )
    for _ in range(3):
        await asyncio.sleep(1.5)
        mortal.kill()
    await eventually(lambda: settled(state), "all to be settled", seconds=100)
    assert await state.dead_letters.count() == 0
    assert set(await index.fetch(["a", "b"])) == {"a", "b"}


async def test_a_death_is_told_from_an_encoder_that_is_away(mortal: MortalEncoder):
    client = EncoderClient(mortal.target, detect_crashes=True)
    await eventually(lambda: _answers(client), "the encoder")
    with pytest.raises(EncoderCrashed):
        await client.encode([DEADLY_TEXT], **OPTIONS)
    mortal.stop()
    for _ in range(2):
        with pytest.raises(DependencyUnavailable, match="cannot be reached") as caught:
            await client.encode([DEADLY_TEXT], **OPTIONS)
        assert not isinstance(caught.value, EncoderCrashed)
    await client.close()


async def _answers(client: EncoderClient) -> bool:
    try:
        await client.encode(["text"], **OPTIONS)
    except DependencyUnavailable:
        return False
    return True
