"""Walking through the collection in use, and through the one that shall replace it, until both are equal.

A walk keeps no notes: it compares ids and versions, which is quick, and copies what differs. So the first
walk, one that goes on after an interruption, and one that only verifies are the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from qdrant_client.conversions.common_types import PointId

from textmatch.errors import TextMatchError
from textmatch.index.index import Index
from textmatch.indexing import Copied, Copier, missing_ids
from textmatch.queue.dead_letters import DeadLetter
from textmatch.reindex.retry import patiently

# As many as make a good batch for the encoder, and enough batches to keep it busy.
_COPIED_TOGETHER = 64
_COPIES_IN_FLIGHT = 4
# With documents coming in, each walk finds some that their workers are about to copy.
_MAX_WALKS = 5


class ReindexRefused(TextMatchError):
    """A step of changing the model cannot be taken now; the message says why and what can be done."""


@dataclass(frozen=True)
class Change:
    """From one collection to another; both are named for their models."""

    source: str
    target: str


@dataclass
class Walked:
    """What walking did; `differing` is how many documents the last walk found to differ."""

    written: int = 0
    removed: int = 0
    walks: int = 0
    differing: int = 0
    refused: dict[str, DeadLetter] = field(default_factory=dict)

    def add(self, copied: Copied) -> None:
        """Count what was done."""
        self.written += copied.written
        self.removed += copied.removed
        self.differing += copied.written + copied.removed
        self.refused |= copied.refused


class Progress(Protocol):
    """Told of what is going on."""

    def stage(self, name: str, total: int) -> None:
        """Something begins that has so many documents before it."""

    def advance(self, count: int) -> None:
        """So many of them are behind it."""


class CollectionSync:
    """Makes the target equal to the source."""

    def __init__(
        self,
        index: Index,
        copier: Copier,
        change: Change,
        progress: Progress,
        max_documents_per_second: float | None,
    ) -> None:
        self._index = index
        self._copier = copier
        self._change = change
        self._progress = progress
        self._seconds_per_document = 1.0 / max_documents_per_second if max_documents_per_second else 0.0
        self._next_copy_at = 0.0
        self._in_flight = asyncio.Semaphore(_COPIES_IN_FLIGHT)

    async def walk_until_equal(self) -> Walked:
        """Walk until a walk finds nothing to do, or often enough.

        Raises:
            ReindexRefused: the target is not to be built any more.
            TextMatchError: repeating does not help.
        """
        total = Walked()
        while total.walks < _MAX_WALKS and (total.differing or total.walks < 2):
            total.differing = 0
            refused_before, total.refused = total.refused, {}
            await self._walk_source(total, refused_before)
            await self._walk_target(total)
            total.walks += 1
        return total

    async def _walk_source(self, total: Walked, refused_before: Mapping[str, DeadLetter]) -> None:
        """Copy what the target lacks."""
        name = "verifying" if total.walks else "copying"
        async for page in self._pages(self._change.source, name):
            await self.check_roles()
            missing = await patiently(missing_ids, page, self._index.points(self._change.target))
            known = [one for one in missing if _is_refused(refused_before.get(one), page[one])]
            total.refused |= {one: refused_before[one] for one in known}
            await self._copy_all([one for one in missing if one not in total.refused], total)

    async def _walk_target(self, total: Walked) -> None:
        """Remove what the source has lost."""
        async for page in self._pages(self._change.target, "cleaning"):
            # After reading: everything on the page was there while the target was being built.
            await self.check_roles()
            total.add(await patiently(self._remove_lost, page))

    async def _copy_all(self, ids: list[str], total: Walked) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(ids), _COPIED_TOGETHER):
                    some = ids[start : start + _COPIED_TOGETHER]
                    await self._in_flight.acquire()
                    await self._keep_to_rate(len(some))
                    group.create_task(self._copy(some, total))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _copy(self, ids: list[str], total: Walked) -> None:
        try:
            total.add(await patiently(self._copy_once, ids))
        finally:
            self._in_flight.release()

    async def _copy_once(self, ids: list[str]) -> Copied:
        return await self._copier.copy(ids, source=self._change.source, target=self._change.target)

    async def _remove_lost(self, page: Mapping[str, int]) -> Copied:
        return await self._copier.remove_lost(page, source=self._change.source, target=self._change.target)

    async def _pages(self, collection: str, name: str) -> AsyncIterator[dict[str, int]]:
        """Versions by id."""
        points = self._index.points(collection)
        self._progress.stage(name, await patiently(points.count))
        position: PointId | None = None
        while True:
            page = await patiently(points.page, position)
            if page.versions:
                yield page.versions
            self._progress.advance(len(page.versions))
            if page.next_position is None:
                return
            position = page.next_position

    async def check_roles(self) -> None:
        """See that nobody has changed what the collections are there for.

        Raises:
            ReindexRefused: somebody has.
        """
        roles = await patiently(self._index.refresh_roles)
        if (roles.in_use, roles.next) == (self._change.source, self._change.target):
            return
        if roles.abandoned == self._change.target:
            raise ReindexRefused(
                f"the workers gave up {self._change.target}, because an encoder does not serve it;"
                " let every encoder serve it and start again, which goes on from here"
            )
        raise ReindexRefused(f"{self._change.target} is not being built any more; somebody has changed that")

    async def _keep_to_rate(self, count: int) -> None:
        now = time.monotonic()
        starts_at = max(now, self._next_copy_at)
        self._next_copy_at = starts_at + count * self._seconds_per_document
        await asyncio.sleep(starts_at - now)


def _is_refused(letter: DeadLetter | None, version: int) -> bool:
    return letter is not None and letter.document is not None and letter.document.version == version
