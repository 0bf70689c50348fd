"""Finds pairs of documents that mean the same, in one collection or in two.

Documents are compared in the order of their point ids. Each asks Qdrant for its nearest neighbors by its
stored embedding, and the cross-encoder scores the pairs that can reach `min_score`.

A pair of one collection is found from either side, or from one side only, if the other document has nearer
neighbors. It is reported once, without a memory of what was reported before:

* with the earlier document, if the later one is among its neighbors;
* else with the later one. The neighbors of the earlier document are then searched again.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from cachetools import LRUCache
from qdrant_client.conversions.common_types import PointId

from textmatch.collection_store import Collection
from textmatch.documents import Document
from textmatch.encoder_client import EncoderClient
from textmatch.errors import CollectionsDiffer
from textmatch.filters import Filter
from textmatch.index.neighbors import EmbeddedId, NeighborSearch
from textmatch.retry import RETRY_OVERLOADED
from textmatch.score_fusion import Fusion, ScoreComponents, ScoreModel, fusion_of, probability, to_single
from textmatch.time_slices import in_slices
from textmatch.types import DuplicateOptions, DuplicatePage, DuplicatePair
from textmatch.vectors import Embeddings

# Documents that are compared by one request to Qdrant.
_PAGE = 64
# Documents that a call compares. The caller goes on with another call, for which its key pays.
MAX_COMPARED = 2_000
# Pairs in a request to the encoder: at most 4 MiB of text.
_PAIRS_PER_CALL = 64
# A pair gets a pair score only if at least one in twenty such pairs means the same. Others are many.
_MIN_CANDIDATE_SCORE = 0.05
# Neighbors of earlier documents that are remembered.
_REMEMBERED = 10_000
_ENCODER_SECONDS = 60.0
_MIN_ENCODER_SECONDS = 0.001
# Cosines have single precision.
_COSINE_MARGIN = 1e-5


@dataclass(frozen=True)
class _Candidate:
    """Two points that are near each other; in one collection, the first one is the earlier one."""

    first: PointId
    second: PointId
    parts: ScoreComponents


# With its two documents.
_Found: TypeAlias = tuple[_Candidate, Document, Document]


@dataclass(frozen=True)
class DuplicateRule:
    """Which pairs of a cosine are candidates, and which of their scores are enough."""

    fusion: Fusion
    min_score: float
    is_reranked: bool

    @classmethod
    def of(cls, options: DuplicateOptions, fusion: Fusion) -> DuplicateRule:
        """The rule of a search. Without a weight for pair scores, no pair is scored."""
        is_reranked = options.rerank and fusion.cosine_pair.pair > 0.0
        return cls(fusion, to_single(options.min_score), is_reranked)

    @property
    def min_cosine(self) -> float:
        """The lowest cosine of a candidate, or a little less."""
        if not self.is_reranked:
            return _lowest_cosine(self.fusion.cosine, self.min_score)
        best = replace(
            self.fusion.cosine_pair, intercept=self.fusion.cosine_pair.logit(ScoreComponents(pair=1.0))
        )
        return max(
            _lowest_cosine(best, self.min_score),
            _lowest_cosine(self.fusion.cosine, _MIN_CANDIDATE_SCORE),
        )

    def pair(self, parts: ScoreComponents, first: Document, second: Document) -> DuplicatePair | None:
        """The pair with its scores; None if they are too low."""
        score = probability(self.fusion.logit(parts))
        if score < self.min_score:
            return None
        recall_score = probability(self.fusion.logit(parts.without_pair()))
        return DuplicatePair(
            replace(first, attributes={}), replace(second, attributes={}), score, recall_score, parts.pair
        )


def _lowest_cosine(model: ScoreModel, score: float) -> float:
    """The lowest cosine with which the model gives at least this score."""
    if score <= 0.0 or model.cosine <= 0.0:
        return -1.0
    logit = math.inf if score >= 1.0 else math.log(score / (1.0 - score))
    return max(-1.0, min(1.0, (logit - model.intercept) / model.cosine) - _COSINE_MARGIN)


class _Neighborhood:
    """The neighbors of the documents of one collection, among themselves or in another collection."""

    def __init__(
        self,
        source: NeighborSearch,
        target: NeighborSearch | None,
        options: DuplicateOptions,
        min_cosine: float,
    ) -> None:
        self._source, self._target = source, target or source
        self._is_one_collection = target is None
        self._where = options.where or Filter()
        self._count = options.neighbors
        self._min_cosine = min_cosine
        # Of points of one collection, in which each is its own nearest neighbor.
        self._known: LRUCache[PointId, dict[PointId, float]] = LRUCache(_REMEMBERED)

    async def after(self, document_id: str, count: int) -> list[EmbeddedId]:
        """The documents that come after one."""
        return await self._source.embedded_after(self._where, document_id, count)

    async def candidates(self, documents: Sequence[EmbeddedId]) -> list[_Candidate]:
        """The pairs that are found with these documents."""
        found = await self._nearest({one.point: one.embedding for one in documents})
        known = found
        if self._is_one_collection:
            earlier = {other for one, others in found.items() for other in others if str(other) < str(one)}
            known = found | await self._remembered(earlier - found.keys())
        candidates = list[_Candidate]()
        async for one, others in in_slices(found.items()):
            for other, cosine in others.items():
                if not self._is_one_collection or str(one) < str(other):
                    candidates.append(_Candidate(one, other, ScoreComponents(cosine)))
                elif one not in known[other]:
                    candidates.append(_Candidate(other, one, ScoreComponents(cosine)))
        return candidates

    async def documents(self, candidates: Sequence[_Candidate]) -> list[_Found]:
        """The candidates whose documents are still stored, with them."""
        first = await self._source.documents(_distinct(one.first for one in candidates))
        second = await self._target.documents(_distinct(one.second for one in candidates))
        return [
            (one, first[one.first], second[one.second])
            async for one in in_slices(candidates)
            if one.first in first and one.second in second
        ]

    async def _remembered(self, points: Iterable[PointId]) -> dict[PointId, dict[PointId, float]]:
        """The neighbors of points that may have been searched before."""
        asked = list(points)
        missing = [one for one in asked if one not in self._known]
        known = {one: self._known[one] for one in asked if one in self._known}
        for start in range(0, len(missing), _PAGE):
            known |= await self._nearest(await self._source.embeddings(missing[start : start + _PAGE]))
        # Those that were deleted have none.
        return {one: known.get(one, {}) for one in asked}

    async def _nearest(self, embeddings: Mapping[PointId, Embeddings]) -> dict[PointId, dict[PointId, float]]:
        """The neighbors of each point with their cosines, nearest first, without the point itself."""
        own = int(self._is_one_collection)
        found = await self._target.nearest(
            list(embeddings.values()), self._count + own, self._where, self._min_cosine
        )
        nearest = {}
        for point, others in zip(embeddings, found, strict=True):
            if own:
                others.pop(point, None)
            nearest[point] = dict(list(others.items())[: self._count])
        if own:
            self._known.update(nearest)
        return nearest


class DuplicateFinder:
    """Implements FindDuplicates. Keeps nothing between calls."""

    def __init__(self, encoder: EncoderClient) -> None:
        self._encoder = encoder

    async def find(
        self,
        collection: Collection,
        against: Collection | None,
        options: DuplicateOptions,
        *,
        deadline: float | None,
    ) -> AsyncIterator[DuplicatePage]:
        """The pairs of some documents at a time, of MAX_COMPARED documents at most.

        Args:
            against: whose documents those of `collection` are compared with; None: with each other.
            deadline: when the caller stops waiting, by `time.monotonic()`; None: never.

        Raises:
            CollectionsDiffer: different bi-encoders built the two collections.
            DependencyUnavailable: Qdrant or the encoder does not answer.
            Overloaded: the encoder refuses to score until the deadline.
        """
        model_id = await collection.index.model_in_use()
        other_id = await against.index.model_in_use() if against else model_id
        if not model_id or not other_id:
            yield DuplicatePage((), options.resume_token, 0, 0, is_last=True)
            return
        if model_id != other_id:
            raise CollectionsDiffer(f"the collections were built with {model_id} and {other_id}")
        notes = (await collection.index.collections.info(model_id)).notes
        rule = DuplicateRule.of(options, fusion_of(notes, model_id))
        target = against.index.neighbors(model_id) if against else None
        near = _Neighborhood(collection.index.neighbors(model_id), target, options, rule.min_cosine)
        after, compared_count, is_last = options.resume_token, 0, False
        while not is_last and compared_count < MAX_COMPARED:
            documents = await near.after(after, _PAGE)
            is_last = len(documents) < _PAGE
            found = await near.documents(await near.candidates(documents))
            if rule.is_reranked:
                found = await self._scored(found, collection.config.cross_encoder, deadline)
            pairs = [rule.pair(candidate.parts, *texts) async for candidate, *texts in in_slices(found)]
            after = documents[-1].document_id if documents else after
            compared_count += len(documents)
            yield DuplicatePage(
                pairs=tuple(one for one in pairs if one is not None),
                resume_token=after,
                compared_count=len(documents),
                scored_count=len(found) if rule.is_reranked else 0,
                is_last=is_last,
            )

    async def _scored(self, found: Sequence[_Found], model: str, deadline: float | None) -> list[_Found]:
        """The pairs with their pair scores."""
        ends_at = time.monotonic() + _ENCODER_SECONDS if deadline is None else deadline
        scored = list[_Found]()
        for start in range(0, len(found), _PAIRS_PER_CALL):
            some = found[start : start + _PAIRS_PER_CALL]
            texts = [(first.text, second.text) for _, first, second in some]
            result = await RETRY_OVERLOADED.call_until(
                ends_at,
                partial(
                    self._encoder.score_pairs,
                    texts,
                    is_bulk=True,
                    timeout_seconds=max(ends_at - time.monotonic(), _MIN_ENCODER_SECONDS),
                    model=model,
                ),
            )
            scored += [
                (replace(candidate, parts=replace(candidate.parts, pair=score)), first, second)
                for (candidate, first, second), score in zip(some, result.scores.tolist(), strict=True)
            ]
        return scored


def _distinct(points: Iterable[PointId]) -> list[PointId]:
    return list(dict.fromkeys(points))
