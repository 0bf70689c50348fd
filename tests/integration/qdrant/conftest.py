"""Connections to the Qdrant that tests/support/qdrant.py starts, and collections in it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from tests.integration.qdrant.edge_process import EdgeProcess, connect, connect_async
from tests.support.qdrant import BINARY, URL, address_of

DIMENSION = 4


@dataclass(frozen=True)
class Address:
    """Where the shared Qdrant answers gRPC."""

    host: str
    port: int


@pytest.fixture(scope="session")
def address(qdrant_url: str) -> Address:
    return Address(*address_of(qdrant_url))


@pytest.fixture(scope="session")
def client(address: Address) -> Iterator[QdrantClient]:
    connection = connect(address.port, address.host)
    yield connection
    connection.close()


@pytest.fixture
async def async_client(address: Address) -> AsyncIterator[AsyncQdrantClient]:
    connection = connect_async(address.port, address.host)
    yield connection
    await connection.close()


# Not of the session: other tests empty the Qdrant that all of them share.
@pytest.fixture(scope="module")
def shared_collection(client: QdrantClient) -> Iterator[str]:
    name = f"shared-{uuid.uuid4().hex}"
    create_collection(client, name)
    yield name
    client.delete_collection(name)


@pytest.fixture
def collection(client: QdrantClient, shared_collection: str) -> Iterator[str]:
    """An empty collection with a dense and a sparse vector.

    It is emptied for the next test, because making a new one takes longer than most tests.
    """
    yield shared_collection
    client.delete(shared_collection, models.FilterSelector(filter=models.Filter()), wait=True)
    for field in client.get_collection(shared_collection).payload_schema:
        client.delete_payload_index(shared_collection, field, wait=True)


@pytest.fixture
def own_collection(client: QdrantClient) -> Iterator[str]:
    """The same, but new, for tests that change or delete the collection itself."""
    name = f"own-{uuid.uuid4().hex}"
    create_collection(client, name)
    yield name
    client.delete_collection(name)


@pytest.fixture
def needs_standalone() -> None:
    """For tests of what a real cluster does in another way, or that stop the server."""
    if URL or BINARY:
        pytest.skip("TEXTMATCH_QDRANT_URL or TEXTMATCH_QDRANT_BIN asks for a real server")


@pytest.fixture
def server(needs_standalone: None, tmp_path: Path) -> Iterator[EdgeProcess]:
    """A server of the test's own, to be killed and started at will."""
    process = EdgeProcess(tmp_path / "data")
    process.start()
    yield process
    process.kill()


def create_collection(client: QdrantClient, name: str) -> None:
    """A collection with the vectors `dense`, of DIMENSION components, and `sparse`."""
    client.create_collection(
        name,
        vectors_config={"dense": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)},
        sparse_vectors_config={"sparse": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )
