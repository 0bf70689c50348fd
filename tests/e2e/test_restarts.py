"""SIGKILL of any one process in the middle of an ingest loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.encoder import make_tiny_bi_encoder
from tests.support.stack import Stack, running_stack, wait_until
from textmatch.client import TextMatchClient
from textmatch.documents import Document
from textmatch.errors import TextMatchError

BATCHES = 30
BATCH_SIZE = 50


@pytest.fixture(scope="module")
def fragile_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own, with a tiny model, to be hurt."""
    directory = tmp_path_factory.mktemp("fragile")
    make_tiny_bi_encoder(directory / "model")
    environment = {
        "TEXTMATCH_BI_ENCODER": str(directory / "model"),
        "TEXTMATCH_CROSS_ENCODER": "none",
        "TEXTMATCH_WORKER_VISIBILITY_TIMEOUT_SECONDS": "5",
        "TEXTMATCH_WORKER_SWEEP_SECONDS": "1",
    }
    with running_stack(directory / "data", environment) as running:
        yield running


@pytest.mark.parametrize("victim", ["worker", "encoder", "matcher", "qdrant", "redis"])
def test_killing_one_process_loses_no_accepted_document(victim: str, fragile_stack: Stack):
    before = fragile_stack.pid(victim)
    with fragile_stack.client() as client:
        stored_before = _count(client)
        killer = threading.Timer(0.3, fragile_stack.kill, [victim])
        killer.start()
        accepted = {
            document.id for batch in range(BATCHES) for document in _ingest(client, f"{victim}-{batch}")
        }
        killer.join()
        expected = stored_before + len(accepted)
        wait_until(lambda: _count(client) == expected, f"{expected} documents", seconds=60)
        sample = sorted(accepted)[:: len(accepted) // 50]
        assert [client.get_document(document_id).id for document_id in sample] == sample
    wait_until(lambda: fragile_stack.pid(victim) not in (0, before), f"{victim} to be back", seconds=60)


def _ingest(client: TextMatchClient, batch: str) -> list[Document]:
    """Send a batch until it is accepted, as any producer has to when a server is gone."""
    documents = [
        Document(f"{batch}-{number}", f"text {number} of batch {batch}") for number in range(BATCH_SIZE)
    ]

    def is_accepted() -> bool:
        try:
            summary = client.ingest_all(documents)
        except TextMatchError as error:
            if not error.is_transient:
                raise
            return False
        return summary.accepted + summary.unchanged == BATCH_SIZE

    wait_until(is_accepted, f"batch {batch} to be accepted")
    return documents


def _count(client: TextMatchClient) -> int:
    try:
        return client.ingest_status().document_count
    except TextMatchError:
        return -1
