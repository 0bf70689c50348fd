"""Qdrant Edge, the engine of Qdrant as a Python extension, served over Qdrant's own gRPC API.

Unchanged `qdrant_client` code that speaks gRPC runs against this server and against a real cluster:

    python -m standalone.qdrant_edge --data-dir DIR

The engine holds the interpreter's lock for the whole of every call, so threads would only add hand-overs:
everything runs on one event loop, one call at a time, in order of arrival. The one thing that takes long,
building the HNSW graph, happens in a process of its own on a copy of the shard (see `rebuild.py`).

Durability: an acknowledged write is in the engine's write-ahead log, in the page cache. It survives any death
of the process; the log is synced to the disk every second, which bounds what a power cut can take.
"""
