"""Payload indexes of a collection, in the real engine."""

from __future__ import annotations

import pytest
from qdrant_client import models

from tests.support.qdrant import API_KEY, QdrantServer
from textmatch.collection_config import PayloadIndex
from textmatch.errors import InvalidInput
from textmatch.index.client import connect
from textmatch.index.schema import PayloadIndexes

INDEXES = [
    PayloadIndex("module", "keyword"),
    PayloadIndex("author.age", "integer"),
    PayloadIndex("价格", "float"),
    PayloadIndex("old", "bool"),
    PayloadIndex("at", "datetime"),
    PayloadIndex("customer", "keyword", is_tenant=True),
]


async def test_every_index_asked_for_exists_afterwards(own_qdrant: QdrantServer):
    client = connect(f"http://127.0.0.1:{own_qdrant.port}", API_KEY)
    await client.create_collection("c", {"v": models.VectorParams(size=2, distance=models.Distance.COSINE)})
    indexes = PayloadIndexes(INDEXES)
    # Workers that open a collection at the same time create them twice.
    for _ in range(2):
        await indexes.create(client, "c", indexes.missing(set()))
    schema = (await client.get_collection("c")).payload_schema
    assert indexes.missing(schema.keys()) == []
    assert {key: info.data_type.value for key, info in schema.items()} == {
        "version": "integer",
        "accepted_us": "integer",
        "passage_of": "keyword",
        "truncated": "bool",
        "attributes.module": "keyword",
        "attributes.author.age": "integer",
        "attributes.价格": "float",
        "attributes.old": "bool",
        "attributes.at": "datetime",
        "attributes.customer": "keyword",
    }
    await client.close()


@pytest.mark.parametrize("field", ["a..b", ".a", 'a"b'])
def test_an_impossible_path_is_named(field: str):
    with pytest.raises(InvalidInput, match="must be parts joined by dots"):
        PayloadIndexes([PayloadIndex(field, "keyword")])
