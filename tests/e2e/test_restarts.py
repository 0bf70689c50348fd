"""SIGKILL of any one process in the middle of an ingest loses nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.support.encoder import make_tiny_bi_encoder
from tests.support.stack import running_stack, wait_until
from textmatch.client import TextMatchClient
from textmatch.documents import Document
from textmatch.errors import TextMatchError

BATCHES = 30
BATCH_SIZE = 50


@pytest.mark.parametrize("victim", ["worker", "encoder", "matcher", "qdrant", "redis"])
def test_killing_one_process_loses_no_accepted_document(victim: str, tmp_path: Path):
    make_tiny_bi_encoder(tmp_path / "model")
    environment = {
        "TEXTMATCH_BI_ENCODER": str(tmp_path / "model"),
        "TEXTMATCH_CROSS_ENCODER": "none",
        "TEXTMATCH_WORKER_VISIBILITY_TIMEOUT_SECONDS": "10",
    }
    with running_stack(tmp_path / "data", environment) as stack, stack.client() as client:
        killer = threading.Timer(0.5, stack.kill, [victim])
        killer.start()
        accepted = {document.id for batch in range(BATCHES) for document in _ingest(client, batch)}
        killer.join()
        wait_until(lambda: _count(client) == len(accepted), "all documents", seconds=90)
        sample = sorted(accepted)[:: len(accepted) // 50]
        assert [client.get_document(document_id).id for document_id in sample] == sample


def _ingest(client: TextMatchClient, batch: int) -> list[Document]:
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
