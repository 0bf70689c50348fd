"""Looking into the ingest queue without a worker."""

from __future__ import annotations

import base64
import json

from redis.asyncio import Redis

from textmatch.documents import Document
from textmatch.queue import envelope, keys, messages


async def take_queued(redis: Redis) -> list[Document]:
    """Remove all tasks; returns their documents, oldest first."""
    documents: list[Document] = []
    while raw := await redis.rpop(keys.QUEUE):
        body = envelope.unpack(str(raw).encode())["body"]
        [[argument], _, _] = json.loads(base64.b64decode(body))
        documents += messages.decode(argument).documents
    return documents
