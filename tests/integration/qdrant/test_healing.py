"""What a crash leaves half-done is healed by the next start.

Each test leaves what a crash at some moment would leave, and starts a server on it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from qdrant_client import models

from tests.integration.qdrant.conftest import create_collection
from tests.integration.qdrant.edge_process import EdgeProcess
from tests.integration.qdrant.points import payloads, point

_ALIAS = models.CreateAliasOperation(
    create_alias=models.CreateAlias(collection_name="kept", alias_name="current")
)


@pytest.fixture(scope="module")
def killed_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server with one collection left when it was killed."""
    server = EdgeProcess(tmp_path_factory.mktemp("killed"))
    server.start()
    with server.client() as client:
        create_collection(client, "kept")
        client.upsert("kept", [point(1, version=1)], wait=True)
        client.update_collection_aliases([_ALIAS])
    server.kill()
    return server.data_dir


@pytest.fixture
def server(needs_standalone: None, killed_data_dir: Path, tmp_path: Path) -> Iterator[EdgeProcess]:
    """Not started yet, on a copy of that."""
    data_dir = tmp_path / "data"
    shutil.copytree(killed_data_dir, data_dir)
    process = EdgeProcess(data_dir)
    yield process
    process.kill()


def test_a_half_created_collection_is_removed(server: EdgeProcess):
    half_created = server.data_dir / "collections" / "half-created"
    shutil.copytree(_folder(server), half_created)
    (half_created / "collection.json").unlink()
    server.start()
    assert not half_created.exists()
    _assert_kept(server)


def test_a_half_deleted_collection_is_removed_with_its_aliases(server: EdgeProcess):
    (_folder(server) / "collection.json").unlink()
    server.start()
    with server.client() as client:
        assert client.get_collections().collections == []
        assert client.get_aliases().aliases == []
        create_collection(client, "kept")
        assert client.count("kept").count == 0


def test_what_an_interrupted_rebuild_left_is_removed(server: EdgeProcess):
    folder = _folder(server)
    [shard] = folder.glob("shard-*")
    (folder / "shard-copy").mkdir()
    (folder / "shard-copy" / "half").write_bytes(b"copied")
    (folder / "shard-copy.journal").write_bytes(b"written")
    server.start()
    _assert_kept(server)
    assert {path.name for path in folder.iterdir()} == {"collection.json", shard.name}


def test_half_written_json_is_ignored(server: EdgeProcess):
    (server.data_dir / "aliases.json.tmp").write_text('{"current": ')
    (_folder(server) / "collection.json.tmp").write_text('{"shard": ')
    server.start()
    _assert_kept(server)


def test_an_unreadable_record_does_not_stop_the_others(server: EdgeProcess):
    unreadable = server.data_dir / "collections" / "unreadable"
    unreadable.mkdir()
    (unreadable / "collection.json").write_text('{"shard": ')
    server.start()
    _assert_kept(server)
    assert unreadable.exists()


def test_a_collection_that_cannot_be_loaded_does_not_stop_the_others(server: EdgeProcess):
    broken = server.data_dir / "collections" / "broken"
    shutil.copytree(_folder(server), broken)
    record = json.loads((broken / "collection.json").read_text())
    record["settings"]["collection_name"] = "broken"
    (broken / "collection.json").write_text(json.dumps(record))
    for path in broken.glob("shard-*/segments/*/segment.json"):
        path.write_text("no JSON")
    server.start()
    _assert_kept(server)
    with server.client() as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.count("broken")
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "Collection `broken` could not be loaded" in caught.value.details()
        assert client.delete_collection("broken")
    assert not broken.exists()


def _folder(server: EdgeProcess) -> Path:
    """Where the one collection is."""
    [folder] = (server.data_dir / "collections").iterdir()
    return folder


def _assert_kept(server: EdgeProcess) -> None:
    with server.client() as client:
        assert payloads(client, "current") == {1: {"version": 1}}
