"""Looking into the ingest queue without a worker."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from redis.asyncio import Redis

from tests.support.collections import KEYS, STATE
from textmatch.documents import Document
from textmatch.queue import messages
from textmatch.queue.pending import Pending


async def take_queued(redis: Redis) -> list[Document]:
    """Remove all tasks; returns their documents, oldest first."""
    documents: list[Document] = []
    while raw := await redis.rpop(KEYS.queue):
        body = messages.unpack(str(raw).encode(), KEYS.queue)["body"]
        [[argument, stamp], _, _] = json.loads(base64.b64decode(body))
        documents += messages.decode(argument, messages.stamp_from_fields(stamp or {})).documents
    return documents


async def mark(pending: Pending, versions: Mapping[str, int], accepted_at: float) -> None:
    """Mark documents as accepted without a message, in the order given."""
    for document_id, version in versions.items():
        await pending._redis.hset(STATE.pending_versions, document_id, str(version))
        await pending._redis.zadd(STATE.pending, {document_id: accepted_at})
