"""The index is built on a copy, while the collection answers and takes writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tests.integration.qdrant.edge_process import EdgeProcess
from tests.integration.qdrant.points import field, must

_DIMENSION = 32
_COUNT = 2_000
_DEADLINE_SECONDS = 40.0
# Small enough for _COUNT vectors to be far above it.
_INDEXING_THRESHOLD_KB = 100
_VECTORS = np.random.default_rng(5).standard_normal((2 * _COUNT, _DIMENSION)).astype(np.float32)


@pytest.fixture
def loaded(server: EdgeProcess) -> EdgeProcess:
    """A server with _COUNT points, which is about to build its index."""
    with server.client() as client:
        client.create_collection(
            "c",
            vectors_config=models.VectorParams(size=_DIMENSION, distance=models.Distance.DOT),
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=_INDEXING_THRESHOLD_KB),
        )
        for start in range(0, _COUNT, 500):
            _write(client, range(start, start + 500), version=1)
    return server


def test_writes_during_a_rebuild_are_in_the_result(loaded: EdgeProcess):
    [folder] = (loaded.data_dir / "collections").iterdir()
    before = set(folder.glob("shard-*[0-9a-f]"))
    with loaded.client() as client:
        assert not _is_green(client)
        _wait_until(lambda: any(folder.glob("*.journal")), "the rebuild to begin")
        # New points, changed points, deleted points and stale writes, while the copy is being optimised.
        written = 0
        while not _is_green(client) and written < _COUNT:
            _write(client, range(_COUNT + written, _COUNT + written + 20), version=1)
            _write(client, range(written, written + 20), version=2)
            _write(client, range(written + 10, written + 20), version=1)
            written += 20
        assert written > 0
        client.delete("c", models.PointIdsList(points=[0]), wait=True)
        _wait_until(lambda: _is_green(client), "green")

        assert client.count("c").count == _COUNT + written - 1
        changed = must(field("version", match=models.MatchValue(value=2)))
        assert client.count("c", changed).count == written - 1
        assert (client.get_collection("c").indexed_vectors_count or 0) >= _COUNT - written
        _assert_finds_what_is_nearest(client)
    assert not before & set(folder.glob("shard-*"))
    assert not list(folder.glob("*.journal"))

    # What was written to the copy is as durable as what was written before.
    loaded.kill()
    loaded.start()
    with loaded.client() as client:
        assert client.count("c").count == _COUNT + written - 1
        assert client.count("c", changed).count == written - 1


def test_changed_points_are_indexed_again(loaded: EdgeProcess):
    [folder] = (loaded.data_dir / "collections").iterdir()
    with loaded.client() as client:
        _wait_until(lambda: _is_green(client), "the first rebuild")
        [first] = _shards(folder)
        _write(client, range(_COUNT), version=2)
        assert not _is_green(client)
        _wait_until(lambda: _is_green(client), "the second rebuild")
        assert [first] != _shards(folder)
        assert client.count("c", must(field("version", match=models.MatchValue(value=2)))).count == _COUNT
        _assert_finds_what_is_nearest(client)


def test_sigkill_during_a_rebuild_loses_nothing(loaded: EdgeProcess):
    [folder] = (loaded.data_dir / "collections").iterdir()
    with loaded.client() as client:
        _wait_until(lambda: any(folder.glob("*.journal")), "the rebuild to begin")
        _write(client, range(_COUNT, _COUNT + 100), version=1)
    loaded.kill()
    loaded.start()
    with loaded.client() as client:
        assert client.count("c").count == _COUNT + 100
        _wait_until(lambda: _is_green(client), "green")
        assert client.count("c").count == _COUNT + 100
        _assert_finds_what_is_nearest(client)
    assert len(_shards(folder)) == 1


def test_a_clean_stop_does_not_wait_for_a_rebuild(loaded: EdgeProcess):
    [folder] = (loaded.data_dir / "collections").iterdir()
    _wait_until(lambda: any(folder.glob("*.journal")), "the rebuild to begin")
    assert loaded.stop() == 0
    assert len(_shards(folder)) == 1
    loaded.start()
    with loaded.client() as client:
        assert client.count("c").count == _COUNT


def test_deleting_the_collection_ends_its_rebuild(loaded: EdgeProcess):
    [folder] = (loaded.data_dir / "collections").iterdir()
    _wait_until(lambda: any(folder.glob("*.journal")), "the rebuild to begin")
    with loaded.client() as client:
        assert client.delete_collection("c")
    assert not folder.exists()


def _write(client: QdrantClient, ids: range, version: int) -> None:
    points = [
        models.PointStruct(id=i, vector=_VECTORS[i].tolist(), payload={"version": version}) for i in ids
    ]
    is_older = must(field("version", range=models.Range(lt=version)))
    client.upsert("c", points, update_filter=is_older, wait=True)


def _assert_finds_what_is_nearest(client: QdrantClient) -> None:
    query = _VECTORS[7].tolist()
    params = models.SearchParams(hnsw_ef=256)
    found = client.query_points("c", query=query, limit=10, search_params=params).points
    exact = models.SearchParams(exact=True)
    expected = client.query_points("c", query=query, limit=10, search_params=exact).points
    assert expected[0].id == 7
    assert len({hit.id for hit in found} & {hit.id for hit in expected}) >= 9


def _is_green(client: QdrantClient) -> bool:
    return client.get_collection("c").status == models.CollectionStatus.GREEN


def _shards(folder: Path) -> list[Path]:
    return [path for path in folder.glob("shard-*") if path.is_dir()]


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {_DEADLINE_SECONDS:g} s for {what}"
        time.sleep(0.05)
