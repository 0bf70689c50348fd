"""The whole ingest path with nothing replaced: matcher, Redis, worker, encoder, Qdrant."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import IngestState
from tests.integration.ingest.test_documents_handler import proto, send
from tests.integration.ingest.waiting import eventually
from tests.integration.ingest.worker_process import WorkerProcess
from tests.support.encoder import (
    make_tiny_bi_encoder,
    spawn_encoder,
    wait_until_serving,
)
from tests.support.redis import free_port
from textmatch.encoder_client import EncoderClient
from textmatch.index.index import Index


class RealEncoder:
    """`python -m services.encoder` with a tiny model, on one port for as long as the test runs."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.target = f"127.0.0.1:{port}"
        self._environment = {
            "TEXTMATCH_ENCODER_PORT": str(port),
            "TEXTMATCH_BI_ENCODER": str(make_tiny_bi_encoder(directory / "bi")),
            "TEXTMATCH_CROSS_ENCODER": "none",
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start and wait until it is SERVING."""
        self._process = spawn_encoder(self._environment)
        wait_until_serving(self._process, self.target)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def real_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEncoder]:
    started = RealEncoder(tmp_path_factory.mktemp("models"))
    started.start()
    yield started
    started.kill()


async def is_settled(state: IngestState) -> bool:
    return (await state.pending.summary()).count == 0


async def test_documents_are_stored_with_the_encoders_embeddings(
    real_encoder: RealEncoder,
    handler: DocumentCalls,
    state: IngestState,
    index: Index,
    start_worker: Callable[..., WorkerProcess],
):
    start_worker(TEXTMATCH_ENCODER_TARGET=real_encoder.target)
    texts = {"猫": "猫坐在垫子上", "dog": "a dog runs in the park", "long": "the cat sits " * 2_000}
    await send(handler, [proto(document_id, text) for document_id, text in texts.items()])
    await eventually(lambda: is_settled(state), "the documents to be settled")
    points = index.points(await index.model_in_use())
    # Of the long one, the first passage.
    stored = list((await points.fetch(texts, with_embeddings=True, is_whole=False)).values())
    assert {one.document.id for one in stored if one.passage_count > 1} == {"long"}
    client = EncoderClient(real_encoder.target)
    encoded = await client.encode(
        [one.document.text for one in stored], is_query=False, is_bulk=True, timeout_seconds=30
    )
    await client.close()
    assert encoded.model_id == await index.model_in_use()
    for one, embedding in zip(stored, encoded.embeddings, strict=True):
        found = one.embedding
        assert found is not None
        assert np.allclose(found, embedding, atol=1e-5)


@pytest.mark.slow
async def test_documents_wait_for_an_encoder_that_was_killed(
    real_encoder: RealEncoder,
    handler: DocumentCalls,
    state: IngestState,
    index: Index,
    start_worker: Callable[..., WorkerProcess],
):
    worker = start_worker(TEXTMATCH_ENCODER_TARGET=real_encoder.target)
    worker.wait_until_ready()
    real_encoder.kill()
    sent = [proto(f"d{number}", f"text {number}") for number in range(200)]
    await send(handler, sent)
    real_encoder.start()
    await eventually(lambda: is_settled(state), "the documents to be settled", seconds=60)
    assert len(await index.fetch([document.id for document in sent])) == 200
    assert await state.dead_letters.count() == 0
