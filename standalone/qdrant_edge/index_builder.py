"""Background work: syncing logs, flushing, and rebuilding the HNSW graph in a child process.

`optimize()` of the engine holds the interpreter's lock for minutes. So the shard is copied, which pauses
writes but not reads, and a child process optimises the copy:

    python -m standalone.qdrant_edge.index_builder COLLECTION_FOLDER SHARD_FOLDER PARENT_PID

Writes that arrive during that time go to the shard and to a journal. The journal is replayed on the copy.
When it is empty, the copy replaces the shard.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import qdrant_edge as edge

from standalone.qdrant_edge.atomic_files import sync_files
from standalone.qdrant_edge.catalog import Catalog
from standalone.qdrant_edge.collection import EdgeCollection, Journal, new_shard_name
from standalone.qdrant_edge.collection_config import CollectionRecord, edge_config
from standalone.qdrant_edge.errors import RequestError, engine_call

_log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
_RETRY_REBUILD_SECONDS = 60.0
# Requests replayed before other calls run. Fewer than arrive in between would make the replay endless.
_REPLAY_SLICE = 64
# Exit code of the child process.
_NOTHING_TO_DO = 3
# Queries have priority, but the index must be finished on a busy machine too.
_NICENESS = 5
_PR_SET_PDEATHSIG = 1


class RebuildFailed(Exception):
    """Copying or optimising failed; the child process wrote the reason to stderr."""


class Maintenance:
    """Maintains all collections until it is cancelled; rebuilds one at a time."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._no_rebuild_before = 0.0

    async def run(self) -> None:
        """Run until cancelled; a collection that fails is logged and tried again."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            for collection in self._catalog.collections:
                try:
                    await self._maintain(collection)
                except Exception:  # noqa: BLE001 (a failing collection must not affect the others)
                    _log.exception("cannot maintain collection %s", collection.name)

    async def _maintain(self, collection: EdgeCollection) -> None:
        await collection.sync_log()
        if collection.is_flush_due():
            collection.flush()
        is_busy = any(one.rebuild_task is not None for one in self._catalog.collections)
        if not is_busy and time.monotonic() >= self._no_rebuild_before and collection.needs_rebuild():
            collection.rebuild_task = asyncio.create_task(self._rebuild(collection))

    async def _rebuild(self, collection: EdgeCollection) -> None:
        try:
            await rebuild(collection)
        except Exception:  # noqa: BLE001 (the collection works without)
            _log.exception("cannot rebuild the index of %s", collection.name)
            self._no_rebuild_before = time.monotonic() + _RETRY_REBUILD_SECONDS
        finally:
            collection.rebuild_task = None


async def rebuild(collection: EdgeCollection) -> None:
    """Optimise a copy of the shard and replace the shard with it.

    Raises:
        RebuildFailed: the collection is unchanged.
    """
    name = new_shard_name()
    copy = collection.folder / name
    unused = copy
    settings = collection.settings
    written = 0
    try:
        async with collection.write_lock:
            collection.flush()
            written = collection.unindexed.take()
            left_over = collection.unindexed_points(collection.shard)
            await _run("cp", "-R", collection.shard_folder, copy)
            collection.journal = Journal(copy.with_suffix(".journal"))
        if await _optimize(collection, copy):
            shard = engine_call(edge.EdgeShard.load, str(copy), edge_config(settings))
            left_over = collection.unindexed_points(shard)
            await _catch_up(collection, shard, collection.journal, copy)
            unused = collection.adopt(name, shard, collection.journal.total_bytes)
            _log.info("rebuilt the index of %s", collection.name)
        collection.rebuild_settled(settings, left_over)
        written = 0
    finally:
        collection.unindexed.give_back(written)
        if collection.journal is not None:
            collection.journal.close()
            collection.journal = None
        await asyncio.to_thread(shutil.rmtree, unused, ignore_errors=True)


async def _optimize(collection: EdgeCollection, copy: Path) -> bool:
    """Returns whether there was anything to do."""
    command = (sys.executable, "-m", "standalone.qdrant_edge.index_builder")
    arguments = (collection.folder, copy, str(os.getpid()))
    return await _run(*command, *arguments, accepted_codes=frozenset({0, _NOTHING_TO_DO})) == 0


async def _run(*command: str | Path, accepted_codes: frozenset[int] = frozenset({0})) -> int:
    """Run a process to its end; it does not outlive this call."""
    process = await asyncio.create_subprocess_exec(*command)
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code not in accepted_codes:
        raise RebuildFailed(f"{command[0]} ended with code {code}")
    return code


async def _catch_up(
    collection: EdgeCollection, shard: edge.EdgeShard, journal: Journal, folder: Path
) -> None:
    """Apply every write so far; the copy is complete until the event loop runs something else."""
    while len(journal):
        _replay(collection, shard, journal)
        await asyncio.sleep(0)
    await asyncio.to_thread(sync_files, folder / "wal")
    while len(journal):
        _replay(collection, shard, journal)


def _replay(collection: EdgeCollection, shard: edge.EdgeShard, journal: Journal) -> None:
    for method, request in journal.drain(_REPLAY_SLICE):
        try:
            collection.replay(shard, method, request)
        except RequestError as error:
            # The request failed in the same way on the shard itself, and its caller got the error.
            _log.debug("replayed %s: %s", method, error)


def optimize_shard(collection_folder: Path, shard_folder: Path, parent_pid: int) -> int:
    """Optimise a shard that no other process uses; returns the exit code of the child process."""
    _die_with_parent(parent_pid)
    os.nice(_NICENESS)
    record = CollectionRecord.load(collection_folder)
    if record is None:
        return _NOTHING_TO_DO
    shard = edge.EdgeShard.load(str(shard_folder), edge_config(record.settings))
    changed = shard.optimize()
    shard.close()
    return 0 if changed else _NOTHING_TO_DO


def _die_with_parent(parent_pid: int) -> None:
    """Exit with the parent: an orphan would write to a folder that the next server has removed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(_NOTHING_TO_DO)


if __name__ == "__main__":
    sys.exit(optimize_shard(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
