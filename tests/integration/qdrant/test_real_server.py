"""How tests/support/qdrant.py starts a real server. A stand-in takes the place of its binary."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from qdrant_client import models

from tests.integration.qdrant.conftest import create_collection
from tests.integration.qdrant.edge_process import connect
from tests.integration.qdrant.points import field, must, payloads, point
from tests.support import qdrant

STAND_IN = Path(qdrant.__file__).with_name("qdrant_stand_in.py")


@pytest.fixture(autouse=True)
def stand_in(needs_standalone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant, "BINARY", str(STAND_IN))
    # The script is run by the python3 of the path.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def test_the_binary_is_started_killed_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(qdrant, "API_KEY", "the-key")
    monkeypatch.setenv("TEXTMATCH_QDRANT_API_KEY", "the-key")
    monkeypatch.setattr(qdrant, "IS_STRICT", True)
    with qdrant.running_real_qdrant(tmp_path) as real:
        assert real is not None
        [node] = real.nodes
        with qdrant.connect_to(real.url) as client:
            create_collection(client, "kept")
            client.upsert("kept", [point(1, text="文字")], wait=True)
            with pytest.raises(grpc.RpcError, match="Index required"):
                client.delete("kept", must(field("text", match=models.MatchValue(value="文字"))))
        node.kill()
        assert not node.is_ready()
        node.start()
        with qdrant.connect_to(real.url) as client:
            assert payloads(client, "kept") == {1: {"text": "文字"}}
        monkeypatch.setenv("TEXTMATCH_QDRANT_API_KEY", "")
        with qdrant.connect_to(real.url) as client, pytest.raises(grpc.RpcError, match="Must provide"):
            client.get_collections()
    assert not node.is_ready()


def test_the_balancer_follows_the_nodes_that_are_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(qdrant, "NODES", 3)
    with qdrant.running_real_qdrant(tmp_path) as real:
        assert real is not None
        assert real.server is not None
        assert len(real.nodes) == 3
        with qdrant.connect_to(real.url) as client:
            create_collection(client, "kept")
        real.nodes[1].kill()
        # More connections than nodes.
        for number in range(4):
            with qdrant.connect_to(real.url) as client:
                client.upsert("kept", [point(number)], wait=True)
        real.server.kill()
        real.server.start()
        for port in [real.server.port, *(node.port for node in real.nodes)]:
            with closing(connect(port)) as client:
                assert payloads(client, "kept").keys() == {0, 1, 2, 3}
