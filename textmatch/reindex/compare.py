"""Compare how two collections answer the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from textmatch.encoder_client import EncoderClient
from textmatch.index.index import Index
from textmatch.reindex.sync import RETRY, Migration, SyncProgress
from textmatch.vectors import Embeddings

_QUERIES_PER_CALL = 64


@dataclass(frozen=True)
class ComparedQuery:
    """`overlap` is the share, 0..1, of the source's answers that the target gives too."""

    text: str
    overlap: float
    same_first: bool


@dataclass(frozen=True)
class Comparison:
    """All queries, compared by their `top_k` nearest documents in both collections."""

    top_k: int
    queries: list[ComparedQuery]

    @property
    def overlap(self) -> float:
        """The mean of all queries; 1 if there are none."""
        return fmean(query.overlap for query in self.queries) if self.queries else 1.0

    @property
    def same_first(self) -> float:
        """The share of queries whose best answer stays the best; 1 if there are none."""
        return fmean(query.same_first for query in self.queries) if self.queries else 1.0


async def compare(
    index: Index,
    encoder: EncoderClient,
    migration: Migration,
    texts: Sequence[str],
    top_k: int,
    timeout_seconds: float,
    progress: SyncProgress,
) -> Comparison:
    """Query both collections, each with the embeddings of its own model, in the bulk lane.

    Queries without an answer in the source are left out.

    Raises:
        ModelMismatch: one of the models is not served.
        TextMatchError: retrying does not help.
    """
    progress.stage("comparing", len(texts))
    compared: list[ComparedQuery] = []
    for start in range(0, len(texts), _QUERIES_PER_CALL):
        some = texts[start : start + _QUERIES_PER_CALL]
        old_rows = await _embed(encoder, some, migration.source, timeout_seconds)
        new_rows = await _embed(encoder, some, migration.target, timeout_seconds)
        for text, old_row, new_row in zip(some, old_rows, new_rows, strict=True):
            old = await RETRY.call(index.points(migration.source).nearest, old_row, top_k)
            new = await RETRY.call(index.points(migration.target).nearest, new_row, top_k)
            if old:
                overlap = len(set(old) & set(new)) / len(old)
                compared.append(ComparedQuery(text, overlap, same_first=old[:1] == new[:1]))
            progress.advance(1)
    return Comparison(top_k, compared)


async def _embed(
    encoder: EncoderClient, texts: Sequence[str], model: str, timeout_seconds: float
) -> Embeddings:
    encoded = await RETRY.call(
        encoder.encode, texts, is_query=True, is_bulk=True, timeout_seconds=timeout_seconds, model=model
    )
    return encoded.embeddings
