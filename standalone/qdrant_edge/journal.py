"""The writes that arrive while a copy of the shard is being optimised."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message

from standalone.qdrant_edge.updates import parse_update

# Lengths of the method's name and of the request.
_HEADER = struct.Struct("<II")


class Journal:
    """A queue of write requests on disk; not durable, because the shard's own log has the same writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = path.open("wb")
        self._reader = path.open("rb")
        self._pending = 0
        self.total_bytes = 0

    def append(self, method: str, request: Message) -> None:
        """Add a request at the end."""
        name, data = method.encode(), request.SerializeToString()
        self._writer.write(_HEADER.pack(len(name), len(data)) + name + data)
        self._pending += 1
        self.total_bytes += len(data)

    def drain(self, limit: int) -> Iterator[tuple[str, Message]]:
        """Take up to that many requests off the front."""
        self._writer.flush()
        for _ in range(min(limit, self._pending)):
            name_size, data_size = _HEADER.unpack(self._reader.read(_HEADER.size))
            name = self._reader.read(name_size).decode()
            self._pending -= 1
            yield name, parse_update(name, self._reader.read(data_size))

    def __len__(self) -> int:
        return self._pending

    def close(self) -> None:
        """Remove the file."""
        self._writer.close()
        self._reader.close()
        self._path.unlink(missing_ok=True)
