"""What is left at the end: the whole index, read from Qdrant itself, and the whole state in Redis.

Of a cluster, every copy is read: once with read consistency ALL, which returns what all copies have alike,
and once from each node, which answers from its own copies where it has some. The former shows what a copy
lacks, the latter what only one copy has.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace

import grpc
import numpy as np
import redis
from qdrant_client import QdrantClient
from qdrant_client.models import ReadConsistencyType, Record

from tests.integration.qdrant.edge_process import connect
from tests.support.collections import KEYS
from textmatch.client import TextMatchClient
from textmatch.documents import Document, content_hash, is_passage_point, point_id, text_hash
from textmatch.index.schema import (
    DENSE_VECTOR,
    PASSAGE_COUNT_FIELD,
    PASSAGE_FIELD,
    PASSAGE_OF_FIELD,
    to_document,
)

_PAGE = 1_000
_READ_SECONDS = 120.0
_MIN_COSINE = 0.999


@dataclass(frozen=True)
class Outcome:
    """Ids of documents by what is wrong with them; all are empty after a good run.

    Those in `mixed` have not exactly the further passages of what is stored.
    """

    lost: list[str]
    duplicated: list[str]
    stale: list[str]
    resurrected: list[str]
    mixed: list[str]
    wrong_embedding: list[str]

    def __str__(self) -> str:
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(f"{len(ids)} {name} {ids[:5]}" for name, ids in counts.items())

    @property
    def is_good(self) -> bool:
        """The index equals the model answer."""
        return not any(getattr(self, field.name) for field in fields(self))


def compare(
    reads: Sequence[list[Record]], expected: Mapping[str, Document], client: TextMatchClient
) -> Outcome:
    """Every point of each read against the model answer.

    The encoder is asked for what the embeddings should be.
    """
    outcomes = [_compare(points, expected, client) for points in reads]
    return Outcome(
        **{
            field.name: sorted({one for outcome in outcomes for one in getattr(outcome, field.name)})
            for field in fields(Outcome)
        }
    )


def _compare(points: list[Record], expected: Mapping[str, Document], client: TextMatchClient) -> Outcome:
    records = [one for one in points if not is_passage_point(str(one.id))]
    counts = Counter(_id(record) for record in records)
    return Outcome(
        lost=[one for one in expected if one not in counts],
        duplicated=[one for one, count in counts.items() if count > 1],
        stale=[_id(one) for one in records if _id(one) in expected and not _is(one, expected[_id(one)])],
        resurrected=[one for one in counts if one not in expected],
        mixed=_mixed(records, [one for one in points if is_passage_point(str(one.id))]),
        wrong_embedding=_wrong_embeddings(points, client),
    )


def read_index(
    server: tuple[str, int], nodes: Sequence[tuple[str, int]], collection: str
) -> list[list[Record]]:
    """All points with their payloads and vectors: of the server, then of each node of a cluster.

    Args:
        server: host and gRPC port, as those of the nodes.
    """
    whole = _read(server, collection, ReadConsistencyType.ALL)
    return [whole, *(_read(node, collection, None) for node in nodes)]


def _read(address: tuple[str, int], collection: str, consistency: ReadConsistencyType | None) -> list[Record]:
    host, port = address
    deadline = time.monotonic() + _READ_SECONDS
    with closing(connect(port, host)) as qdrant:
        while True:
            try:
                return _scroll(qdrant, collection, consistency)
            except grpc.RpcError:
                # Copies may still be rebuilt from others.
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)


def _scroll(qdrant: QdrantClient, collection: str, consistency: ReadConsistencyType | None) -> list[Record]:
    records: list[Record] = []
    offset = None
    while True:
        page, offset = qdrant.scroll(
            collection,
            limit=_PAGE,
            offset=offset,
            with_payload=True,
            with_vectors=True,
            consistency=consistency,
        )
        records += page
        if offset is None:
            return records


def left_in_redis(client: redis.Redis) -> dict[str, int]:
    """How much is in every list and hash of the queue; tombstones are not counted."""
    [entry] = client.hvals(KEYS.collections)
    config = json.loads(entry)
    state = KEYS.collection(config["name"], config["generation"])
    return {
        "queue": client.llen(KEYS.queue),
        "taken": client.llen(KEYS.taken),
        "unacknowledged": client.hlen(KEYS.unacked),
        "unacknowledged-index": client.zcard(KEYS.unacked_index),
        "pending": client.zcard(state.pending),
        "pending-versions": client.hlen(state.pending_versions),
        "dead-letters": client.hlen(state.letters.dead_letters),
        "dead-letter-versions": client.hlen(state.letters.dead_letter_versions),
        "dead-letter-times": client.zcard(state.letters.dead_letter_times),
    }


def _id(record: Record) -> str:
    return str((record.payload or {})["id"])


def _is(record: Record, expected: Document) -> bool:
    """Whether the point is this document in every part; a version of 0 may be any."""
    payload = record.payload or {}
    stored = to_document(payload)
    hashes_fit = payload["text_hash"] == text_hash(expected.text) and payload["content_hash"] == content_hash(
        expected
    )
    wanted = expected if expected.version else replace(expected, version=stored.version)
    return stored == wanted and hashes_fit and str(record.id) == str(point_id(expected.id))


def _mixed(records: list[Record], further: list[Record]) -> list[str]:
    """The documents with missing or wrong further passages, and those that have some without being stored."""
    found: dict[str, list[tuple[int, int, str]]] = {}
    for one in further:
        payload = one.payload or {}
        passage = (payload[PASSAGE_FIELD]["number"], payload["version"], payload[PASSAGE_OF_FIELD][1])
        found.setdefault(_id(one), []).append(passage)
    wanted = {}
    for record in records:
        payload = record.payload or {}
        count = payload.get(PASSAGE_COUNT_FIELD, 1)
        passages = [(number, payload["version"], payload["content_hash"]) for number in range(1, count)]
        wanted |= {_id(record): passages} if passages else {}
    heads = {_id(one): (one.payload or {})["version"] for one in records}
    ids = [one for one in found.keys() | wanted.keys() if sorted(found.get(one, [])) != wanted.get(one)]
    return [
        f"{one} of version {heads.get(one)}: {Counter(version for _, version, _ in found.get(one, []))}"
        f" instead of {len(wanted.get(one, []))}"
        for one in sorted(ids)
    ]


def _wrong_embeddings(records: list[Record], client: TextMatchClient) -> list[str]:
    if not records:
        return []
    stored = np.array([dict(record.vector)[DENSE_VECTOR] for record in records], dtype=np.float32)
    texts = [str((record.payload or {})["text"]) for record in records]
    cosines = (client.encode(texts).embeddings * stored).sum(axis=1)
    return [_id(record) for record, cosine in zip(records, cosines, strict=True) if cosine < _MIN_COSINE]
