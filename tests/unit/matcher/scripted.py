"""A scripted encoder and a scripted index."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from services.matcher.matching import Matcher
from services.matcher.reranker import Reranker
from services.matcher.retriever import Retriever
from textmatch import errors
from textmatch.collection_config import CollectionConfig
from textmatch.collection_store import Collection
from textmatch.documents import Document
from textmatch.index.aliases import CollectionInfo, Roles
from textmatch.index.client import CollectionGone
from textmatch.index.search import Hit, SearchQuery
from textmatch.index.term_statistics import UNKNOWN
from textmatch.score_fusion import FUSION_NOTE, Fusion, ScoreModel, to_mapping
from textmatch.types import EncodeResult, MatchOptions, MatchResult, ScoreResult

MODEL = "bi-000000000000"
COSINES = {"a": 0.9, "b": 0.8, "c": -0.2}
# Logits that are easy to add up.
FUSION = Fusion(
    cosine=ScoreModel(0.0, cosine=1.0),
    lexical=ScoreModel(-1.0, lexical=1.0),
    cosine_lexical=ScoreModel(0.0, cosine=1.0, lexical=1.0),
    cosine_pair=ScoreModel(0.0, cosine=1.0, pair=0.5),
    cosine_lexical_pair=ScoreModel(0.0, cosine=1.0, lexical=1.0, pair=0.5),
)


@dataclass
class ScriptedEncoder:
    scores: dict[str, float] = field(default_factory=lambda: {"text a": 0.1, "text b": 0.9, "text c": 0.3})
    encode_error: Exception | None = None
    score_error: Exception | None = None
    score_timeouts: list[float] = field(default_factory=list)
    scored: list[list[str]] = field(default_factory=list)
    scored_by: list[str] = field(default_factory=list)
    served: tuple[str, ...] = (MODEL,)
    encode_count: int = 0
    encode_gate: asyncio.Event | None = None
    encode_seconds: float = 0.0
    # Chunks that are scored before `score_error` is raised.
    good_chunks: int = 0
    classes: list[float] = field(default_factory=lambda: [0.2, 0.9, 0.5])

    async def encode(self, texts, *, is_query, is_bulk, timeout_seconds, model):
        assert is_query
        self.encode_count += 1
        if self.encode_gate:
            # Like the real client, wait no longer than the timeout.
            try:
                await asyncio.wait_for(self.encode_gate.wait(), timeout_seconds)
            except TimeoutError:
                raise errors.DeadlinePassed("the encoder did not answer in time") from None
        await asyncio.sleep(min(self.encode_seconds, timeout_seconds))
        if self.encode_seconds > timeout_seconds:
            raise errors.DeadlinePassed("the encoder did not answer in time")
        if self.encode_error:
            raise self.encode_error
        if model and model not in self.served:
            raise errors.ModelMismatch(index_model_id=model, encoder_model_id=", ".join(self.served))
        return EncodeResult(np.ones((1, 2), dtype=np.float32), (3,), (False,), model or self.served[0])

    async def score(self, query, texts, *, is_bulk, timeout_seconds, model):
        self.scored_by.append(model)
        self.score_timeouts.append(timeout_seconds)
        if self.score_error and len(self.scored) >= self.good_chunks:
            raise self.score_error
        self.scored.append(list(texts))
        scores = np.array([self.scores.get(text, 0.5) for text in texts])
        return ScoreResult(scores, scores, (False,) * len(texts), "cross-000000000000")

    async def classify(self, query, embeddings, *, is_bulk, timeout_seconds, model):
        assert (model, embeddings.shape) == (MODEL, (3, 2))
        if self.score_error:
            raise self.score_error
        classes = np.array(self.classes)
        return ScoreResult(classes, classes, (False,) * 3, MODEL)


@dataclass
class ScriptedIndex:
    current: str = MODEL
    # The collection in use when the alias was last read.
    cached: str | None = None
    dropped: tuple[str, ...] = ()
    cosines: dict[str, float] = field(default_factory=lambda: dict(COSINES))
    # The lexical evidence of each document; None without a BM25 index.
    lexical: dict[str, float] | None = None
    notes: dict[str, object] = field(default_factory=lambda: {FUSION_NOTE: to_mapping(FUSION)})
    texts: dict[str, str] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    search_seconds: float = 0.0
    read_count: int = 0
    # What is suspicious about every filter, and how often that was asked.
    warnings: tuple[str, ...] = ()
    warning_count: int = 0
    warning_error: Exception | None = None
    lexical_search_count: int = 0
    plan_reads: list[str] = field(default_factory=list)

    @property
    def collections(self):
        return self

    @property
    def term_statistics(self):
        return self

    async def get(self, collection, timeout_seconds):
        self.plan_reads.append("term statistics")
        return UNKNOWN

    async def in_use(self):
        self.plan_reads.append("collection")
        return self.current if self.cached is None else self.cached

    async def refresh_roles(self):
        self.cached = None
        return Roles(in_use=self.current)

    async def info(self, collection):
        self.plan_reads.append("info")
        if collection in self.dropped:
            self.cached = None
            raise CollectionGone(collection)
        return CollectionInfo(self.lexical is not None, notes=self.notes)

    async def search(self, query, *, model_id):
        self.lexical_search_count += query.embedding is None
        await asyncio.sleep(self.search_seconds)
        hits = self._lexical_hits() if query.embedding is None else self._dense_hits(query)
        if query.with_documents:
            hits = [replace(hit, document=self._document(hit.point)) for hit in hits]
        return hits[: query.count]

    def _lexical_hits(self) -> list[Hit]:
        return [Hit(key, None, evidence) for key, evidence in self.lexical.items()]

    def _dense_hits(self, query: SearchQuery) -> list[Hit]:
        return [
            Hit(key, cosine, self.lexical.get(key, 0.0) if query.terms else None)
            for key, cosine in self.cosines.items()
        ]

    async def filter_warnings(self, condition, *, model_id):
        self.warning_count += 1
        await asyncio.sleep(self.search_seconds)
        if self.warning_error:
            raise self.warning_error
        return self.warnings

    async def documents(self, points, *, model_id):
        self.read_count += 1
        return {key: self._document(key) for key in points if key not in self.deleted}

    def _document(self, key: str) -> Document:
        return Document(key, self.texts.get(key, f"text {key}"))

    async def embeddings(self, points, *, model_id):
        return {key: np.ones(2, dtype=np.float32) for key in points if key not in self.deleted}


class CollectionMatcher:
    """A matcher that is always asked about one collection."""

    def __init__(self, real: Matcher, collection: Collection) -> None:
        self._real = real
        self._collection = collection

    async def match(self, query: str, options: MatchOptions, **keywords: Any) -> MatchResult:
        return await self._real.match(self._collection, query, options, **keywords)


def matcher(
    encoder: ScriptedEncoder,
    index: ScriptedIndex | None = None,
    depth: int = 40,
    config: CollectionConfig = CollectionConfig(),  # noqa: B008 -- it is frozen
    cache_bytes: int = 100_000,
) -> CollectionMatcher:
    untouched: Any = None
    collection = Collection(
        config, cast("Any", index or ScriptedIndex()), untouched, untouched, untouched, untouched
    )
    real = Matcher(Retriever(cast("Any", encoder), cache_bytes), Reranker(cast("Any", encoder)), depth)
    return CollectionMatcher(real, collection)


def soon(seconds: float = 1.0) -> float:
    return time.monotonic() + seconds
