"""Payload indexes: which attributes filters are quick on."""

from __future__ import annotations

import re

from qdrant_client import AsyncQdrantClient, models

from textmatch.errors import InvalidInput
from textmatch.index.connection import translated_errors
from textmatch.index.filters import attribute_key

_VARIABLE = "TEXTMATCH_PAYLOAD_INDEXES"
_KINDS = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "integer": models.PayloadSchemaType.INTEGER,
    "float": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.BOOL,
}


class PayloadIndexes:
    """The indexes that the configuration asks for."""

    def __init__(self, kinds: dict[str, models.PayloadSchemaType]) -> None:
        self._kinds = kinds
        self._ensured: set[str] = set()

    @classmethod
    def parse(cls, text: str) -> PayloadIndexes:
        """From `module:keyword,year:integer`; the kinds are keyword, integer, float and bool.

        Raises:
            InvalidInput: naming the entry that is wrong.
        """
        kinds = {}
        for entry in filter(None, re.split(r"\s*,\s*", text.strip())):
            field, _, kind = entry.rpartition(":")
            if not field or kind not in _KINDS:
                known = ", ".join(_KINDS)
                raise InvalidInput.of_field(_VARIABLE, f"holds {entry!r}; write attribute:kind, of {known}")
            kinds[attribute_key(field)] = _KINDS[kind]
        return cls(kinds)

    async def ensure(self, client: AsyncQdrantClient, collection: str) -> None:
        """Create what a collection lacks, once for each collection; existing documents are indexed too."""
        if collection in self._ensured:
            return
        async with translated_errors():
            for key, kind in self._kinds.items():
                await client.create_payload_index(collection, key, field_schema=kind, wait=True)
        self._ensured.add(collection)
