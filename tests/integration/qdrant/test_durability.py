"""What is acknowledged survives restarts and sudden death."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import grpc
from qdrant_client import models

from tests.integration.qdrant.conftest import create_collection
from tests.integration.qdrant.edge_process import STOP_SECONDS, EdgeProcess, server_command
from tests.integration.qdrant.points import field, must, payloads, point

_ALIAS = models.CreateAliasOperation(
    create_alias=models.CreateAlias(collection_name="kept", alias_name="current")
)


def test_a_restart_keeps_everything(server: EdgeProcess):
    with server.client() as client:
        create_collection(client, "kept")
        client.create_payload_index("kept", "version", models.PayloadSchemaType.INTEGER, wait=True)
        client.update_collection_aliases([_ALIAS])
        client.upsert("current", [point(1, text="文字", version=7)], wait=True)
    assert server.stop() == 0
    server.start()
    with server.client() as client:
        assert payloads(client, "current") == {1: {"text": "文字", "version": 7}}
        info = client.get_collection("current")
        assert info.payload_schema["version"].data_type == models.PayloadSchemaType.INTEGER
        is_older = must(field("version", range=models.Range(lt=6)))
        client.upsert("current", [point(1, version=6)], update_filter=is_older)
        assert payloads(client, "current")[1]["version"] == 7


def test_sigkill_in_the_middle_of_writes_loses_none_that_was_acknowledged(server: EdgeProcess):
    with server.client() as client:
        create_collection(client, "kept")
    acknowledged: list[int] = []
    enough = threading.Event()

    def write(writer: int) -> None:
        with server.client() as client:
            for start in range(0, 100_000, 8):
                ids = [writer * 1_000_000 + start + i for i in range(8)]
                try:
                    client.upsert("kept", [point(i, version=i) for i in ids], wait=True)
                except grpc.RpcError:
                    return
                acknowledged.extend(ids)
                if len(acknowledged) > 1_000:
                    enough.set()

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
    for writer in writers:
        writer.start()
    assert enough.wait(STOP_SECONDS)
    server.kill()
    for writer in writers:
        writer.join()
    server.start()
    with server.client() as client:
        records, _ = client.scroll("kept", limit=200_000)
        stored = {record.id: record.payload for record in records}
        assert set(acknowledged) <= set(stored)
        assert all(stored[i] == {"version": i} for i in acknowledged)


def test_deletes_and_changes_survive_sigkill_too(server: EdgeProcess):
    with server.client() as client:
        create_collection(client, "kept")
        create_collection(client, "dropped")
        client.upsert("kept", [point(i, version=1) for i in range(10)], wait=True)
        is_even = must(models.HasIdCondition(has_id=[0, 2, 4, 6, 8]))
        client.delete("kept", models.FilterSelector(filter=is_even), wait=True)
        client.upsert("kept", [point(2, version=2)], wait=True)
        client.upsert("kept", [point(1, version=1, text="changed")], wait=True)
        client.update_collection_aliases([_ALIAS])
        client.delete_collection("dropped")
    server.kill()
    server.start()
    with server.client() as client:
        stored = payloads(client, "current")
        assert set(stored) == {1, 2, 3, 5, 7, 9}
        assert stored[1] == {"version": 1, "text": "changed"}
        assert stored[2] == {"version": 2}
        assert not client.collection_exists("dropped")


def test_a_second_process_is_refused(server: EdgeProcess):
    second = subprocess.run(
        server_command(server.data_dir), capture_output=True, text=True, timeout=STOP_SECONDS, check=False
    )
    assert second.returncode == 1
    assert second.stdout == ""
    expected = f"cannot start: data folder {server.data_dir} is in use by process {server.pid}"
    assert second.stderr.strip() == expected


def test_a_taken_port_is_one_clear_line(server: EdgeProcess, tmp_path: Path):
    command = [*server_command(tmp_path / "other")[:-1], str(server.port)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=STOP_SECONDS, check=False)
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith("cannot start: ")
    assert str(server.port) in second.stderr.splitlines()[-1]
