"""The process that builds the HNSW graph: `optimize_shard COLLECTION_FOLDER SHARD_FOLDER PARENT_PID`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import qdrant_edge as edge

from standalone.qdrant_edge.collection_config import edge_config
from standalone.qdrant_edge.collection_record import CollectionRecord

NOTHING_TO_DO = 3

# Queries come first, but on a busy machine the index must still be built some time.
_NICENESS = 5
_PR_SET_PDEATHSIG = 1


def main(collection_folder: Path, shard_folder: Path, parent_pid: int) -> int:
    """Optimise a shard that nobody else uses; the exit code is 0 or NOTHING_TO_DO."""
    _die_with_parent(parent_pid)
    os.nice(_NICENESS)
    record = CollectionRecord.load(collection_folder)
    if record is None:
        return NOTHING_TO_DO
    shard = edge.EdgeShard.load(str(shard_folder), edge_config(record.settings))
    changed = shard.optimize()
    shard.close()
    return 0 if changed else NOTHING_TO_DO


def _die_with_parent(parent_pid: int) -> None:
    """An orphan would go on writing to a folder that the next server has removed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(NOTHING_TO_DO)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
