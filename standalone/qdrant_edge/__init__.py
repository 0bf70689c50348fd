"""Qdrant Edge, the engine of Qdrant as a Python extension, served over Qdrant's own gRPC API.

`qdrant_client` code that uses gRPC runs unchanged against this server and against a real cluster. README.md
lists the limits:

    python -m standalone.qdrant_edge --data-dir DIR

The engine holds the interpreter's lock during every call, so threads would not make it faster. All calls run
on one event loop, one at a time, in order of arrival. The only slow task, building the HNSW graph, runs in a
child process on a copy of the shard (see `index_builder.py`).

Durability: an acknowledged write is in the engine's write-ahead log, in the page cache. It survives the death
of the process. The log is synced to the disk every second, which bounds what a power cut can lose.
"""
