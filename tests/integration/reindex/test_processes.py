"""A change of the model in a whole stack of real processes, the command killed in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.encoder import make_tiny_bi_encoder
from tests.support.qdrant import connect_to
from tests.support.stack import Stack, running_stack, wait_until
from textmatch.client import Document, ModelKind, TextMatchClient
from textmatch.errors import DocumentNotFound, TextMatchError

pytestmark = pytest.mark.slow

COUNT = 1_500


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("stack")
    first = make_tiny_bi_encoder(directory / "first", seed=1)
    second = make_tiny_bi_encoder(directory / "second", seed=2)
    environment = {
        "TEXTMATCH_BI_ENCODER": f"{first},{second}",
        "TEXTMATCH_CROSS_ENCODER": "none",
        "OMP_NUM_THREADS": "1",
    }
    with running_stack(directory / "data", environment) as started:
        yield started


class Asking:
    """Asks the matcher without pause; keeps the errors and the models that answered."""

    def __init__(self, client: TextMatchClient) -> None:
        self.errors: list[TextMatchError] = []
        self.models: list[str] = []
        self._client = client
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                result = self._client.match("the cat sits on the mat", rerank=False, top_k=5)
            except TextMatchError as error:
                self.errors.append(error)
                continue
            assert len(result.matches) == 5
            self.models.append(result.bi_encoder_model_id)


def start_reindex(stack: Stack, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "textmatch.cli", "reindex", "--data-dir", str(stack.data_dir), *arguments],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def reindex(stack: Stack, *arguments: str) -> str:
    """Run the command to its end; it must succeed."""
    finished = stack.textmatch("reindex", *arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def texts(client: TextMatchClient, ids: list[str]) -> dict[str, str]:
    """What is stored of these."""
    found = {}
    for one in ids:
        try:
            found[one] = client.get_document(one).text
        except DocumentNotFound:
            continue
    return found


def stored_in(stack: Stack, model_id: str) -> int:
    """How many points the physical collection of a model has."""
    with connect_to(stack.file["qdrant_url"]) as client:
        names = [one.name for one in client.get_collections().collections]
        found = [name for name in names if name.startswith(f"default--{model_id}--")]
        return sum(client.count(name, exact=True).count for name in found)


def test_queries_and_ingest_go_on_while_the_model_is_changed_and_the_command_killed(stack: Stack):
    with stack.client() as client, stack.client() as asking_client:
        client.ingest_all([Document(f"d{number}", f"cat {number}") for number in range(COUNT)], wait=True)
        first, second = [model.model_id for model in client.models() if model.kind is ModelKind.BI_ENCODER]
        asking = Asking(asking_client)
        with asking.running():
            killed = start_reindex(stack, "--model", second, "--max-documents-per-second", "200")
            wait_until(lambda: stored_in(stack, second) > 200, "the copy to begin")
            killed.kill()
            killed.communicate()
            assert stored_in(stack, second) < COUNT

            updated = [Document(f"d{number}", f"dog {number}") for number in range(0, 300, 3)]
            client.ingest_all([*updated, Document("late", "a dog")], wait=True)
            client.delete(["d1", "d1400"])
            assert '"switched": true' in reindex(stack, "--model", second, "--json")
            wait_until(lambda: asking.models[-1] == second, "the matcher to follow")
            client.ingest_all([Document("last", "a dog after the switch")], wait=True)
            client.delete(["d2"])
            reindex(stack, "--rollback")
            wait_until(lambda: asking.models[-1] == first, "the matcher to follow back")
            expected = {"d0": "dog 0", "d4": "cat 4", "late": "a dog", "last": "a dog after the switch"}
            asked = ["d0", "d1", "d1400", "d2", "d4", "late", "last"]
            assert texts(client, asked) == expected
            assert client.ingest_status().document_count == COUNT + 2 - 3
            reindex(stack, "--rollback")
            reindex(stack, "--drop-old")
            wait_until(lambda: asking.models[-1] == second, "the matcher to follow again")
            assert texts(client, asked) == expected
            assert client.ingest_status().document_count == COUNT + 2 - 3
        assert asking.errors == []
        assert set(asking.models) == {first, second}
