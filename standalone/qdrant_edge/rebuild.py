"""Building the HNSW graph beside the collection that is being served.

`optimize()` of the engine holds the interpreter's lock for minutes. So a process of its own copies the shard,
which pauses writes but not reads, and optimises the copy. Writes that arrive meanwhile go to the shard and to
a journal; the journal is replayed on the copy, and when nothing is left the copy takes the shard's place.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from pathlib import Path

import qdrant_edge as edge

from standalone.qdrant_edge.collection import Collection, new_shard_name
from standalone.qdrant_edge.collection_config import edge_config
from standalone.qdrant_edge.errors import RequestError, engine_call
from standalone.qdrant_edge.journal import Journal
from standalone.qdrant_edge.optimize_copy import COPIED, NOTHING_TO_DO
from standalone.qdrant_edge.storage import sync_files

_log = logging.getLogger(__name__)

# Requests replayed before others get a turn: more than can arrive in between, or the end would never come.
_REPLAY_SLICE = 64


class RebuildFailed(Exception):
    """The optimising process did not end well; its own words are on stderr."""


async def rebuild(collection: Collection) -> None:
    """Optimise a copy of the shard and put it in the shard's place.

    Raises:
        RebuildFailed: the collection is as it was.
    """
    name = new_shard_name()
    copy = collection.folder / name
    unused = copy
    child: asyncio.subprocess.Process | None = None
    try:
        async with collection.write_lock:
            collection.flush()
            child = await _start(collection, copy)
            await _wait_until_copied(child)
            collection.journal = Journal(copy.with_suffix(".journal"))
        if await _finished(child):
            shard = await _caught_up(collection, copy, collection.journal)
            unused = collection.adopt(name, shard)
            _log.info("rebuilt the index of %s", collection.name)
        collection.rebuild_settled()
    finally:
        await _kill(child)
        if collection.journal is not None:
            collection.journal.close()
            collection.journal = None
        await asyncio.to_thread(shutil.rmtree, unused, ignore_errors=True)


async def _start(collection: Collection, copy: Path) -> asyncio.subprocess.Process:
    module = "standalone.qdrant_edge.optimize_copy"
    arguments = [str(collection.folder), str(collection.shard_folder), str(copy)]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE
    )


async def _wait_until_copied(child: asyncio.subprocess.Process) -> None:
    assert child.stdout is not None  # noqa: S101 (it is a pipe)
    if (await child.stdout.readline()).decode().strip() != COPIED:
        raise RebuildFailed(f"copying the shard ended with code {await child.wait()}")


async def _finished(child: asyncio.subprocess.Process) -> bool:
    code = await child.wait()
    if code not in {0, NOTHING_TO_DO}:
        raise RebuildFailed(f"optimising the shard ended with code {code}")
    return code == 0


async def _caught_up(collection: Collection, copy: Path, journal: Journal) -> edge.EdgeShard:
    """The optimised copy with every write so far; valid until the event loop runs something else."""
    shard = engine_call(edge.EdgeShard.load, str(copy), edge_config(collection.settings))
    while len(journal):
        _replay(collection, shard, journal)
        await asyncio.sleep(0)
    await asyncio.to_thread(sync_files, copy / "wal")
    while len(journal):
        _replay(collection, shard, journal)
    return shard


def _replay(collection: Collection, shard: edge.EdgeShard, journal: Journal) -> None:
    for method, request in journal.drain(_REPLAY_SLICE):
        try:
            collection.replay(shard, method, request)
        except RequestError as error:
            # It failed in the same way on the shard itself, and its caller knows.
            _log.debug("replayed %s: %s", method, error)


async def _kill(child: asyncio.subprocess.Process | None) -> None:
    if child is not None and child.returncode is None:
        child.kill()
        await child.wait()
