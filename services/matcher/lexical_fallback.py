"""The best answer when there is hardly time for one search: nearest embeddings, or else shared words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any

from services.matcher.retriever import NOT_EMBEDDED, EmbeddedQuery, Retriever
from textmatch.index.search import Hit
from textmatch.types import MatchOptions, Recall

# Kept back for the way of the answer: when nothing is late, and in utmost haste.
_CALM_RESERVE_SECONDS, _HASTY_RESERVE_SECONDS = 0.004, 0.007
# Words are searched when only so many quick searches still end before that, likewise.
_CALM_SEARCHES_FOR_WORDS, _HASTY_SEARCHES_FOR_WORDS = 1.5, 4.5
# What is ready with less time left is late: the ways of query and answer are not seen here.
_WAYS_SECONDS = 0.0025
# A late answer adds as much haste as so many in time take away: about one in so many will be late.
_LATE_STEP = 0.2
_IN_TIME_PER_LATE = 200


@dataclass(frozen=True)
class Found:
    """Hits that bring their documents, in no particular order; by words if the query has no embedding."""

    query: EmbeddedQuery
    recall: Recall | None
    hits: list[Hit]


class Haste:
    """How soon to settle for words, 0..1: no sooner than it takes for hardly any answer to be late."""

    def __init__(self) -> None:
        self._level = 0.0

    @property
    def answer_reserve_seconds(self) -> float:
        """How long before the deadline an answer has to be found."""
        return self._between(_CALM_RESERVE_SECONDS, _HASTY_RESERVE_SECONDS)

    @property
    def searches_for_words(self) -> float:
        """How many times as long as a quick search a search by words is given."""
        return self._between(_CALM_SEARCHES_FOR_WORDS, _HASTY_SEARCHES_FOR_WORDS)

    def note(self, *, is_late: bool) -> None:
        """An answer is found, or has not been found in time."""
        step = _LATE_STEP if is_late else -_LATE_STEP / _IN_TIME_PER_LATE
        self._level = min(max(self._level + step, 0.0), 1.0)

    def _between(self, calm: float, hasty: float) -> float:
        return calm + self._level * (hasty - calm)


class Hurry:
    """Searches once for what is shown, by words too in case that the embedding is late."""

    def __init__(self, recaller: Retriever) -> None:
        self._recaller = recaller
        self._haste = Haste()

    async def find(self, query: str, options: MatchOptions, *, deadline: float, is_bulk: bool) -> Found:
        """What can be found before the deadline.

        Raises:
            DependencyUnavailable, ModelMismatch: as for Recaller.embed.
            DeadlinePassed, DeadlineTooShort, Overloaded: the query is not embedded in time, or refused, and
                words will not do.
        """
        collection = await self._recaller.collection(deadline)
        if not await self._recaller.words_will_do(collection, options, deadline):
            embedded = await self._embed(query, finish=deadline, is_bulk=is_bulk)
            return await self.search(embedded, options, deadline=deadline)
        try:
            return await self._find_either_way(query, collection, options, deadline, is_bulk)
        finally:
            self._haste.note(is_late=deadline - time.monotonic() < _WAYS_SECONDS)

    async def _find_either_way(
        self, query: str, collection: str, options: MatchOptions, deadline: float, is_bulk: bool
    ) -> Found:
        """By the embedding if that makes it, else by words."""
        search_seconds = self._recaller.quick_search_seconds
        finish = deadline - self._haste.answer_reserve_seconds
        words_from = finish - self._haste.searches_for_words * search_seconds
        embedding = asyncio.create_task(self._embed(query, finish=finish, is_bulk=is_bulk))
        nearest = asyncio.create_task(self._search_embedded(embedding, options, deadline))
        tasks = [embedding, nearest]
        try:
            await _done_by(words_from, embedding)
            if embedding.done() and embedding.exception() is None:
                # Another search would only be in its way, until there is hardly time for one.
                await _done_by(finish - search_seconds, nearest)
                if nearest.done():
                    return nearest.result()
            by_words = asyncio.create_task(
                self.search(EmbeddedQuery(query, collection, collection, None), options, deadline=deadline)
            )
            tasks.append(by_words)
            await _done_by(finish, nearest)
            if nearest.done() and not isinstance(nearest.exception(), NOT_EMBEDDED):
                return nearest.result()
            found = await by_words
            return found if found.hits or nearest.done() else await nearest
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def search(self, query: EmbeddedQuery, options: MatchOptions, *, deadline: float) -> Found:
        """What one search finds, by the embedding if there is one."""
        recall = options.recall if query.embedding is None else Recall.DENSE
        quick = replace(options, candidate_count=min(options.candidate_count, options.top_k), recall=recall)
        hits = await self._recaller.find(query, quick, deadline=deadline, with_documents=True)
        return Found(query, recall, hits)

    async def _embed(self, query: str, *, finish: float, is_bulk: bool) -> EmbeddedQuery:
        """The query with its embedding, early enough for a search that ends before `finish`."""
        embed_before = finish - self._recaller.quick_search_seconds
        return await self._recaller.embed(query, deadline=embed_before, is_bulk=is_bulk)

    async def _search_embedded(
        self, embedding: Awaitable[EmbeddedQuery], options: MatchOptions, deadline: float
    ) -> Found:
        return await self.search(await embedding, options, deadline=deadline)


async def _done_by(moment: float, task: asyncio.Task[Any]) -> None:
    """Returns when the task is done, or else at that moment."""
    await asyncio.wait({task}, timeout=moment - time.monotonic())
