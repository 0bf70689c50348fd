"""The index behind the servers, for commands that work on it without the matcher."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from textmatch.cli.connection import Addresses
from textmatch.cli.settings import from_environment
from textmatch.index.client import QdrantTls, connect
from textmatch.index.index import Index
from textmatch.index.schema import PayloadIndexes


@asynccontextmanager
async def connected_index(addresses: Addresses) -> AsyncIterator[Index]:
    """The index at these addresses, for a `with` block.

    Raises:
        InvalidInput: a setting cannot be used.
    """
    settings = from_environment()
    tls = QdrantTls(settings.qdrant_ca, settings.tls_cert, settings.tls_key)
    qdrant = connect(addresses.qdrant_url, settings.qdrant_api_key, tls=tls)
    index = Index(qdrant, settings.collection_alias, PayloadIndexes.parse(settings.payload_indexes))
    try:
        yield index
    finally:
        await index.close()
