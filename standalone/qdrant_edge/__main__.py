"""`python -m standalone.qdrant_edge --data-dir DIR`: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path

from standalone.qdrant_edge.atomic_files import FolderInUse, FolderLock
from standalone.qdrant_edge.catalog import Catalog
from standalone.qdrant_edge.index_builder import Maintenance
from standalone.qdrant_edge.server import EdgeServer

_STOP_GRACE_SECONDS = 5.0


def main() -> int:
    """Exit code 0 after a clean stop, 1 if the server could not start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(prog="python -m standalone.qdrant_edge", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds the collections")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=6334, help="gRPC port; 0 picks a free one")
    parser.add_argument("--strict", action="store_true", help="new collections forbid unindexed filters")
    arguments = parser.parse_args()
    try:
        lock = FolderLock(arguments.data_dir)
        try:
            asyncio.run(_serve(arguments))
        finally:
            lock.release()
    except (FolderInUse, RuntimeError, OSError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    catalog = Catalog(arguments.data_dir, is_strict=arguments.strict)
    # Exclude loaded modules from garbage collection, which would take half the time of large batches.
    gc.freeze()
    server = EdgeServer(catalog)
    try:
        bound_port = await server.start(arguments.host, arguments.port)
        print(f"listening on {arguments.host}:{bound_port}", flush=True)
        maintenance = asyncio.create_task(Maintenance(catalog).run())
        await stopping.wait()
        maintenance.cancel()
        await server.stop(_STOP_GRACE_SECONDS)
    finally:
        await catalog.close()


if __name__ == "__main__":
    sys.exit(main())
