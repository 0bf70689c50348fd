"""Building the HNSW graph beside the collection that is being served.

`optimize()` of the engine holds the interpreter's lock for minutes. So the shard is copied, which pauses
writes but not reads, and a process of its own optimises the copy. Writes that arrive meanwhile go to the
shard and to a journal; the journal is replayed on the copy, and when nothing is left the copy takes the
shard's place.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
from pathlib import Path

import qdrant_edge as edge

from standalone.qdrant_edge.atomic_files import sync_files
from standalone.qdrant_edge.collection import Collection, new_shard_name
from standalone.qdrant_edge.collection_config import edge_config
from standalone.qdrant_edge.errors import RequestError, engine_call
from standalone.qdrant_edge.journal import Journal
from standalone.qdrant_edge.optimize_shard import NOTHING_TO_DO

_log = logging.getLogger(__name__)

# Requests replayed before others get a turn: more than can arrive in between, or the end would never come.
_REPLAY_SLICE = 64


class RebuildFailed(Exception):
    """Copying or optimising did not end well; the process's own words are on stderr."""


async def rebuild(collection: Collection) -> None:
    """Optimise a copy of the shard and put it in the shard's place.

    Raises:
        RebuildFailed: the collection is as it was.
    """
    name = new_shard_name()
    copy = collection.folder / name
    unused = copy
    settings = collection.settings
    written = 0
    try:
        async with collection.write_lock:
            collection.flush()
            written = collection.backlog.take()
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
        collection.backlog.give_back(written)
        if collection.journal is not None:
            collection.journal.close()
            collection.journal = None
        await asyncio.to_thread(shutil.rmtree, unused, ignore_errors=True)


async def _optimize(collection: Collection, copy: Path) -> bool:
    """Says whether there was anything to do."""
    command = (sys.executable, "-m", "standalone.qdrant_edge.optimize_shard")
    arguments = (collection.folder, copy, str(os.getpid()))
    return await _run(*command, *arguments, fine=frozenset({0, NOTHING_TO_DO})) == 0


async def _run(*command: str | Path, fine: frozenset[int] = frozenset({0})) -> int:
    """Run a process to its end; it does not outlive this call."""
    process = await asyncio.create_subprocess_exec(*command)
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code not in fine:
        raise RebuildFailed(f"{command[0]} ended with code {code}")
    return code


async def _catch_up(collection: Collection, shard: edge.EdgeShard, journal: Journal, folder: Path) -> None:
    """Apply every write so far; the copy is complete until the event loop runs something else."""
    while len(journal):
        _replay(collection, shard, journal)
        await asyncio.sleep(0)
    await asyncio.to_thread(sync_files, folder / "wal")
    while len(journal):
        _replay(collection, shard, journal)


def _replay(collection: Collection, shard: edge.EdgeShard, journal: Journal) -> None:
    for method, request in journal.drain(_REPLAY_SLICE):
        try:
            collection.replay(shard, method, request)
        except RequestError as error:
            # It failed in the same way on the shard itself, and its caller knows.
            _log.debug("replayed %s: %s", method, error)
