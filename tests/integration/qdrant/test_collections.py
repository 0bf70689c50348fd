"""Collections, aliases and payload indexes."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from qdrant_client import QdrantClient, models

from tests.integration.qdrant.conftest import Address, create_collection
from tests.integration.qdrant.points import point

_CREATED_CODES = {grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT}


@pytest.fixture
def other_collection(client: QdrantClient) -> Iterator[str]:
    name = f"other-{uuid.uuid4().hex}"
    create_collection(client, name)
    yield name
    client.delete_collection(name)


@pytest.fixture
def alias() -> str:
    return f"alias-{uuid.uuid4().hex}"


def test_describes_what_was_created(client: QdrantClient):
    name = f"described-{uuid.uuid4().hex}"
    client.create_collection(
        name,
        vectors_config={
            "dense": models.VectorParams(
                size=3,
                distance=models.Distance.DOT,
                on_disk=True,
                hnsw_config=models.HnswConfigDiff(m=24),
            )
        },
        sparse_vectors_config={"sparse": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        hnsw_config=models.HnswConfigDiff(ef_construct=77),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=12_345),
        on_disk_payload=True,
        metadata={"model": "模型", "dimension": 3},
    )
    try:
        info = client.get_collection(name)
    finally:
        client.delete_collection(name)
    assert info.status == models.CollectionStatus.GREEN
    assert info.points_count == 0
    assert isinstance(info.config.params.vectors, dict)
    dense = info.config.params.vectors["dense"]
    assert (dense.size, dense.distance, dense.on_disk) == (3, models.Distance.DOT, True)
    assert dense.hnsw_config is not None
    assert dense.hnsw_config.m == 24
    assert info.config.params.sparse_vectors is not None
    assert info.config.params.sparse_vectors["sparse"].modifier == models.Modifier.IDF
    assert info.config.hnsw_config.ef_construct == 77
    assert info.config.optimizer_config.indexing_threshold == 12_345
    assert info.config.metadata == {"model": "模型", "dimension": 3}


def test_one_unnamed_vector(client: QdrantClient):
    name = f"unnamed-{uuid.uuid4().hex}"
    client.create_collection(
        name, vectors_config=models.VectorParams(size=2, distance=models.Distance.EUCLID)
    )
    try:
        client.upsert(name, [models.PointStruct(id=i, vector=[float(i), 0.0], payload={}) for i in range(3)])
        nearest = client.query_points(name, query=[1.9, 0.0], limit=1, with_vectors=True).points[0]
        vectors = client.get_collection(name).config.params.vectors
    finally:
        client.delete_collection(name)
    assert (nearest.id, nearest.vector) == (2, [2.0, 0.0])
    assert isinstance(vectors, models.VectorParams)
    assert vectors.size == 2


def test_smaller_and_quantized_vectors(client: QdrantClient):
    name = f"quantized-{uuid.uuid4().hex}"
    scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.5, always_ram=True)
    client.create_collection(
        name,
        vectors_config=models.VectorParams(
            size=4,
            distance=models.Distance.COSINE,
            datatype=models.Datatype.FLOAT16,
            quantization_config=models.ScalarQuantization(scalar=scalar),
        ),
    )
    try:
        client.upsert(name, [models.PointStruct(id=1, vector=[1.0, 0.0, 0.0, 0.0])])
        params = models.SearchParams(quantization=models.QuantizationSearchParams(rescore=True))
        hits = client.query_points(name, query=[1.0, 0.0, 0.0, 0.0], search_params=params).points
        stored = client.get_collection(name).config.params.vectors
    finally:
        client.delete_collection(name)
    assert [(hit.id, hit.score) for hit in hits] == [(1, pytest.approx(1.0, abs=0.01))]
    assert isinstance(stored, models.VectorParams)
    assert stored.datatype == models.Datatype.FLOAT16
    assert stored.quantization_config == models.ScalarQuantization(scalar=scalar)


def test_exists_and_is_listed_until_deleted(client: QdrantClient, own_collection: str):
    assert client.collection_exists(own_collection)
    assert own_collection in {one.name for one in client.get_collections().collections}
    assert client.delete_collection(own_collection)
    assert not client.collection_exists(own_collection)
    assert own_collection not in {one.name for one in client.get_collections().collections}
    assert client.delete_collection(own_collection) is False


def test_the_same_name_twice_is_refused(client: QdrantClient, collection: str):
    with pytest.raises(grpc.RpcError) as caught:
        create_collection(client, collection)
    assert caught.value.code() in _CREATED_CODES
    assert f"Collection `{collection}` already exists!" in caught.value.details()


def test_a_missing_collection_is_not_found(client: QdrantClient):
    with pytest.raises(grpc.RpcError) as caught:
        client.upsert("nobody", [point(1)])
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "Not found: Collection `nobody` doesn't exist!"


@pytest.mark.parametrize("size", [0, 100_000])
def test_impossible_vector_sizes_are_refused(client: QdrantClient, size: int):
    params = models.VectorParams.model_construct(size=size, distance=models.Distance.COSINE)
    with pytest.raises(grpc.RpcError) as caught:
        client.create_collection("impossible", vectors_config=params)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not client.collection_exists("impossible")


def test_an_alias_stands_for_its_collection(
    client: QdrantClient, own_collection: str, other_collection: str, alias: str
):
    client.upsert(own_collection, [point(1, where="first")])
    client.upsert(other_collection, [point(1, where="second")])
    client.update_collection_aliases([_create(alias, own_collection)])
    assert client.retrieve(alias, [1])[0].payload == {"where": "first"}
    assert client.get_collection(alias).points_count == 1

    client.update_collection_aliases([_delete(alias), _create(alias, other_collection)])
    assert client.retrieve(alias, [1])[0].payload == {"where": "second"}
    assert client.get_collection_aliases(own_collection).aliases == []
    entry = models.AliasDescription(alias_name=alias, collection_name=other_collection)
    assert client.get_collection_aliases(other_collection).aliases == [entry]
    assert entry in client.get_aliases().aliases

    renamed = f"{alias}-renamed"
    rename = models.RenameAlias(old_alias_name=alias, new_alias_name=renamed)
    client.update_collection_aliases([models.RenameAliasOperation(rename_alias=rename)])
    client.upsert(renamed, [point(2)])
    assert client.count(other_collection).count == 2
    assert not client.collection_exists(alias)


def test_a_switch_is_never_seen_half_done(
    client: QdrantClient, own_collection: str, other_collection: str, alias: str
):
    client.update_collection_aliases([_create(alias, own_collection)])
    stopping = threading.Event()
    failures: list[Exception] = []

    def read() -> None:
        while not stopping.is_set():
            try:
                client.count(alias)
            except grpc.RpcError as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for target in [other_collection, own_collection] * 10:
        client.update_collection_aliases([_delete(alias), _create(alias, target)])
    stopping.set()
    reader.join()
    assert failures == []


def test_aliases_go_with_their_collection(client: QdrantClient, other_collection: str, alias: str):
    client.update_collection_aliases([_create(alias, other_collection)])
    client.delete_collection(other_collection)
    assert alias not in {entry.alias_name for entry in client.get_aliases().aliases}


def test_an_alias_needs_an_existing_collection(client: QdrantClient, collection: str, alias: str):
    with pytest.raises(grpc.RpcError) as caught:
        client.update_collection_aliases([_create(alias, "nobody")])
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        client.update_collection_aliases([_create(collection, collection)])
    assert caught.value.code() in _CREATED_CODES


def test_a_wrong_action_leaves_all_aliases_alone(
    needs_standalone: None, client: QdrantClient, collection: str, alias: str
):
    with pytest.raises(grpc.RpcError):
        client.update_collection_aliases([_create(alias, collection), _create("other", "nobody")])
    assert client.get_collection_aliases(collection).aliases == []


def test_parameters_can_be_changed(client: QdrantClient, own_collection: str):
    client.update_collection(
        own_collection,
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=4_321),
        metadata={"stage": 2},
    )
    config = client.get_collection(own_collection).config
    assert config.optimizer_config.indexing_threshold == 4_321
    assert config.metadata == {"stage": 2}


@pytest.mark.parametrize("kind", ["keyword", "integer", "float", "bool", "datetime", "text", "uuid"])
def test_payload_indexes_come_and_go(client: QdrantClient, collection: str, kind: str):
    schema = models.PayloadSchemaType(kind)
    client.create_payload_index(collection, "field.inside", schema, wait=True)
    assert client.get_collection(collection).payload_schema["field.inside"].data_type == schema
    client.delete_payload_index(collection, "field.inside", wait=True)
    assert client.get_collection(collection).payload_schema == {}


def test_health_is_reported_in_both_ways(client: QdrantClient, address: Address):
    assert client.info().version
    with grpc.insecure_channel(f"{address.host}:{address.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ["", "qdrant.Qdrant"]:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_what_is_not_served_says_so(needs_standalone: None, client: QdrantClient, collection: str):
    with pytest.raises(grpc.RpcError) as caught:
        client.create_snapshot(collection)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "/qdrant.Snapshots/Create" in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        client.create_collection("sharded", sharding_method=models.ShardingMethod.CUSTOM)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "custom sharding" in caught.value.details()


def _create(alias: str, collection: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)
    )


def _delete(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
