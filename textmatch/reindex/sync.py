"""Compare two collections page by page, and copy or remove what differs, until both are equal.

A pass compares ids and versions, which is fast, and keeps no state. Therefore the same code runs the first
pass, a pass after an interruption, and a pass that only verifies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from qdrant_client.conversions.common_types import PointId

from textmatch.errors import DependencyUnavailable, TextMatchError
from textmatch.index.client import CollectionGone
from textmatch.index.index import Index
from textmatch.indexing import Copier, CopyResult
from textmatch.queue.dead_letters import DeadLetter
from textmatch.retry import Answer, Arguments, RetryPolicy, is_transient

# One batch for the encoder, and enough batches to keep it busy.
_DOCUMENTS_PER_COPY = 64
_COPIES_IN_FLIGHT = 4
_POLL_SECONDS = 0.2
_UNKNOWN_SECONDS = 10.0
# While documents are ingested, each pass finds some that their workers are about to copy.
_MAX_PASSES = 5


@dataclass(frozen=True)
class _ReindexRetry(RetryPolicy):
    """Retries for minutes, but for some seconds only if a collection is not there.

    A node that does not know a new collection soon will. One that was dropped does not come back.
    """

    async def call(
        self, step: Callable[Arguments, Awaitable[Answer]], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Answer:
        give_up_at = time.monotonic() + _UNKNOWN_SECONDS
        while True:
            try:
                return await super().call(step, *args, **kwargs)
            except CollectionGone:
                if time.monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(_POLL_SECONDS)


RETRY = _ReindexRetry(retry_on=lambda error: is_transient(error) and not isinstance(error, CollectionGone))


class ReindexRefused(TextMatchError):
    """A step is not possible now. The message has the reason, and what to do."""


@dataclass(frozen=True)
class Migration:
    """From one collection to another; both are named for their models."""

    source: str
    target: str


@dataclass
class SyncReport:
    """The changes of all passes; `differing` is the number of documents that differed in the last pass."""

    written: int = 0
    removed: int = 0
    passes: int = 0
    differing: int = 0
    refused: dict[str, DeadLetter] = field(default_factory=dict)

    def add(self, copied: CopyResult) -> None:
        """Count a copy."""
        self.written += copied.written
        self.removed += copied.removed
        self.differing += copied.written + copied.removed
        self.refused |= copied.refused


class SyncProgress(Protocol):
    """Receives progress."""

    def stage(self, name: str, total: int) -> None:
        """A stage begins; `total` is its number of documents."""

    def advance(self, count: int) -> None:
        """`count` more documents of the stage are done."""


class CollectionSync:
    """Makes the target of a migration equal to its source."""

    def __init__(
        self,
        index: Index,
        copier: Copier,
        migration: Migration,
        progress: SyncProgress,
        max_documents_per_second: float | None,
    ) -> None:
        self._index = index
        self._copier = copier
        self._migration = migration
        self._target = index.points(migration.target)
        self._progress = progress
        self._seconds_per_document = 1.0 / max_documents_per_second if max_documents_per_second else 0.0
        self._next_copy_at = 0.0
        self._in_flight = asyncio.Semaphore(_COPIES_IN_FLIGHT)

    async def run_until_equal(self) -> SyncReport:
        """Repeat passes until one finds no difference, up to a limit.

        Raises:
            ReindexRefused: the target is no longer being built.
            TextMatchError: retrying does not help.
        """
        report = SyncReport()
        while report.passes < _MAX_PASSES and (report.differing or report.passes < 2):
            report.differing = 0
            refused_before, report.refused = report.refused, {}
            await self._copy_missing(report, refused_before)
            await self._remove_deleted(report)
            report.passes += 1
        return report

    async def check_roles(self) -> None:
        """Check that the source is still in use and the target is still being built.

        Raises:
            ReindexRefused: one of them is not.
        """
        roles = await RETRY.call(self._index.collections.refresh_roles)
        if (roles.in_use, roles.next) == (self._migration.source, self._migration.target):
            return
        if roles.abandoned == self._migration.target:
            raise ReindexRefused(
                f"workers abandoned {self._migration.target}, because an encoder does not serve its model;"
                " serve the model from every encoder, then repeat the command to continue"
            )
        raise ReindexRefused(f"{self._migration.target} is no longer being built: its role was changed")

    async def _copy_missing(self, report: SyncReport, refused_before: Mapping[str, DeadLetter]) -> None:
        """Copy the documents that the target lacks or has in an older version."""
        name = "verifying" if report.passes else "copying"
        async for page in self._pages(self._migration.source, name):
            await self.check_roles()
            held = await self._held(page)
            missing = [one for one, version in page.items() if held.get(one, 0) < version]
            known = {one: refused_before[one] for one in missing if one in refused_before}
            report.refused |= {one: letter for one, letter in known.items() if _is_about(letter, page[one])}
            await self._copy_all([one for one in missing if one not in report.refused], report)

    async def _held(self, ids: Mapping[str, int]) -> dict[str, int]:
        """The versions that the target has on every replica.

        An earlier run may have ended after a write that only some replicas applied. While a replica is
        missing, none counts as held, and all documents are sent again. That embeds nothing, and a replica
        that has a document ignores it.
        """
        try:
            return await self._target.versions(ids, on_all_replicas=True)
        except CollectionGone:
            raise
        except DependencyUnavailable:
            return {}

    async def _remove_deleted(self, report: SyncReport) -> None:
        """Remove what was deleted from the source."""
        async for page in self._pages(self._migration.target, "cleaning"):
            # Checked after the read, which proves that the page was read while the target was being built.
            await self.check_roles()
            removed = await RETRY.call(
                self._copier.remove_deleted,
                page,
                source=self._migration.source,
                target=self._migration.target,
            )
            report.add(removed)

    async def _copy_all(self, ids: list[str], report: SyncReport) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(ids), _DOCUMENTS_PER_COPY):
                    some = ids[start : start + _DOCUMENTS_PER_COPY]
                    await self._in_flight.acquire()
                    await self._keep_to_rate(len(some))
                    group.create_task(self._copy(some, report))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _copy(self, ids: list[str], report: SyncReport) -> None:
        try:
            copied = await RETRY.call(
                self._copier.copy, ids, source=self._migration.source, target=self._migration.target
            )
            report.add(copied)
        finally:
            self._in_flight.release()

    async def _pages(self, collection: str, stage: str) -> AsyncIterator[dict[str, int]]:
        """Versions by id."""
        points = self._index.points(collection)
        self._progress.stage(stage, await RETRY.call(points.count))
        position: PointId | None = None
        while True:
            page = await RETRY.call(points.page, position)
            if page.versions:
                yield page.versions
            self._progress.advance(len(page.versions))
            if page.next_position is None:
                return
            position = page.next_position

    async def _keep_to_rate(self, count: int) -> None:
        now = time.monotonic()
        starts_at = max(now, self._next_copy_at)
        self._next_copy_at = starts_at + count * self._seconds_per_document
        await asyncio.sleep(starts_at - now)


def _is_about(letter: DeadLetter, version: int) -> bool:
    return letter.document is not None and letter.document.version == version
