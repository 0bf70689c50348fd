"""A producer that keeps at it: what is not acknowledged is sent again."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from tests.chaos.program import Delete, Operation
from textmatch.client import TextMatchClient
from textmatch.documents import Document
from textmatch.errors import DocumentDeleted, TextMatchError

_MAX_BATCH = 40
_PATIENCE_SECONDS = 180.0
_PAUSE_SECONDS = 0.2


def send(client: TextMatchClient, operations: Sequence[Operation]) -> None:
    """Send operations in order until each is acknowledged.

    Raises:
        TextMatchError: something else than a passing failure, or nothing was acknowledged for minutes.
    """
    for batch in _batches(operations):
        documents = [one for one in batch if isinstance(one, Document)]
        if documents:
            _ingest(client, documents)
        for delete in batch:
            if isinstance(delete, Delete):
                _delete(client, delete)


def _batches(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    """Writes together, up to a limit; deletes together."""
    for _, group in groupby(operations, key=type):
        same = list(group)
        for start in range(0, len(same), _MAX_BATCH):
            yield same[start : start + _MAX_BATCH]


def _ingest(client: TextMatchClient, documents: Sequence[Document]) -> None:
    missing = dict(enumerate(documents))

    def attempt() -> None:
        positions = list(missing)
        for result in client.ingest(list(missing.values())):
            # Versions are sent in any order: a delete of a higher one may have come before.
            is_refused = (
                isinstance(result.error, DocumentDeleted) and missing[positions[result.position]].version
            )
            assert result.error is None or is_refused, f"{result.id}: {result.error}"
            del missing[positions[result.position]]

    _until_acknowledged(attempt)


def _delete(client: TextMatchClient, delete: Delete) -> None:
    """Half of the documents are deleted in the index, the other half by deletes in the queue."""
    if zlib.crc32(delete.id.encode()) % 2:
        _ingest(client, [Document.deletion(delete.id, delete.version or 0)])
    else:
        _until_acknowledged(lambda: client.delete([delete.id], version=delete.version))


def _until_acknowledged(attempt: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            attempt()
        except TextMatchError as error:
            if not error.is_transient or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return
