"""Going on where an interrupted ingest ended: how far a file was answered, kept beside it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from textmatch.client import IngestOutcome
from textmatch.io.document_reader import Record
from textmatch.io.line_reader import STDIN, CommandFailed, Position

_SUFFIX = ".textmatch-progress"
_SAVE_SECONDS = 5.0
_FINGERPRINT_BYTES = 64 * 1024

Counts = Counter[IngestOutcome]


@dataclass
class Entry:
    """A record that was read, and what became of it once that is known."""

    record: Record
    outcome: IngestOutcome | None = None
    reason: str = ""


class Answers:
    """What became of the records, counted in the order of the file although answers come in another.

    Up to `position` every record is answered and in `counts`.
    """

    def __init__(self, position: Position, counts: Counts) -> None:
        self.position = position
        self.counts = counts
        self._entries: deque[Entry] = deque()

    def expect(self, record: Record) -> Entry:
        """The record was read; hand what is returned to `answer`."""
        entry = Entry(record)
        self._entries.append(entry)
        return entry

    def answer(self, entry: Entry, outcome: IngestOutcome, reason: str = "") -> Iterator[tuple[Record, str]]:
        """The record was answered; gives the rejected records up to the new position, with their reasons."""
        entry.outcome, entry.reason = outcome, reason
        while self._entries and (first := self._entries[0]).outcome is not None:
            self._entries.popleft()
            self.counts[first.outcome] += 1
            self.position = first.record.end
            if first.outcome is IngestOutcome.REJECTED:
                yield first.record, first.reason


class ProgressFile:
    """Beside the file that is read. Nothing is kept of stdin, nor where nothing can be written."""

    def __init__(self, source_name: str, source: BinaryIO, matcher: str) -> None:
        self._path = Path(f"{source_name}{_SUFFIX}")
        found = {} if source_name == STDIN else _identity(source)
        self._identity = {**found, "matcher": matcher}
        self.is_kept = "size_bytes" in self._identity
        self._saved_at = time.monotonic()

    def load(self) -> Answers | None:
        """How far an earlier run came with the same file at the same matcher; None if there was none.

        Raises:
            CommandFailed: the progress file cannot be read.
        """
        try:
            content: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            counts = Counter({outcome: content["counts"][outcome] for outcome in IngestOutcome})
            position = Position(content["offset_bytes"], content["line_number"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CommandFailed(f"{self._path} cannot be read; remove it to start anew: {error}") from error
        return Answers(position, counts) if content.get("identity") == self._identity else None

    def save(self, answers: Answers, *, is_last: bool = False) -> None:
        """Note how far we are, every few seconds and when it is the last time."""
        if not self.is_kept or (not is_last and time.monotonic() < self._saved_at + _SAVE_SECONDS):
            return
        self._saved_at = time.monotonic()
        content = {
            "identity": self._identity,
            "offset_bytes": answers.position.offset_bytes,
            "line_number": answers.position.line_number,
            "counts": {outcome: answers.counts[outcome] for outcome in IngestOutcome},
        }
        unfinished = self._path.with_name(f"{self._path.name}.new")
        with suppress(OSError):
            unfinished.write_text(json.dumps(content), encoding="utf-8")
            unfinished.replace(self._path)

    def remove(self) -> None:
        """Everything is answered."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _identity(source: BinaryIO) -> dict[str, Any]:
    """What tells whether a file is still the one it was; empty for what is no file."""
    try:
        status = os.fstat(source.fileno())
        if not source.seekable():
            return {}
        start = source.read(_FINGERPRINT_BYTES)
        source.seek(0)
    except OSError:
        return {}
    return {
        "size_bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "start": hashlib.blake2b(start, digest_size=16).hexdigest(),
    }
