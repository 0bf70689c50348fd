"""Payload indexes as the configuration asks for them, in the real engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from qdrant_client import models

from tests.integration.qdrant.edge_process import EdgeProcess
from textmatch.errors import InvalidInput
from textmatch.index.client import connect
from textmatch.index.schema import PayloadIndexes


async def test_every_index_asked_for_exists_afterwards(tmp_path: Path):
    server = EdgeProcess(tmp_path)
    server.start()
    client = connect(f"http://127.0.0.1:{server.port}")
    await client.create_collection("c", {"v": models.VectorParams(size=2, distance=models.Distance.COSINE)})
    indexes = PayloadIndexes.parse(" module:keyword, author.age:integer,价格:float,old:bool,at:datetime ")
    await indexes.ensure(client, "c")
    await PayloadIndexes.parse("module:keyword").ensure(client, "c")
    schema = (await client.get_collection("c")).payload_schema
    assert {key: info.data_type.value for key, info in schema.items()} == {
        "attributes.module": "keyword",
        "attributes.author.age": "integer",
        "attributes.价格": "float",
        "attributes.old": "bool",
        "attributes.at": "datetime",
    }
    await client.close()
    assert server.stop() == 0


@pytest.mark.parametrize("text", ["module", "module:text", ":keyword"])
def test_an_entry_that_cannot_be_read_is_named(text: str):
    with pytest.raises(
        InvalidInput,
        match="TEXTMATCH_PAYLOAD_INDEXES: '.*' must be attribute:kind, where kind is one of keyword, integer",
    ):
        PayloadIndexes.parse(text)
