"""Progress bars, on stderr and only if a person looks."""

from __future__ import annotations

import os
import stat
import time
from typing import BinaryIO, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from textmatch.client import IngestStatus

_DOCUMENTS_PER_UPDATE = 100


class MatchProgress:
    """Shows how many queries are answered and how fast, if `is_shown`."""

    def __init__(self, is_shown: bool) -> None:
        console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("matching {task.completed:,.0f} queries, {task.fields[rate]:,.0f}/s"),
            console=console,
            disable=not (is_shown and console.is_terminal),
        )
        self._task = self._progress.add_task("", total=None, rate=0.0)
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """One more is answered."""
        done = self._progress.tasks[self._task].completed + 1
        rate = done / max(time.monotonic() - self._started, 0.001)
        self._progress.update(self._task, completed=done, rate=rate)


class StageProgress:
    """Shows one bar for each stage, with the time left."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._stages: list[TaskID] = []

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def stage(self, name: str, total: int) -> None:
        """A stage begins that has so much before it."""
        self._stages.append(self._progress.add_task(name, total=total))

    def advance(self, count: int) -> None:
        """So much of it is done."""
        self._progress.advance(self._stages[-1], count)


class IngestProgress:
    """Shows how much of a file is read and how fast, then how much still waits to be searchable."""

    def __init__(self, source: BinaryIO, start_bytes: int = 0) -> None:
        console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._total_bytes = _size_bytes(source)
        self._reading = self._progress.add_task(
            "reading", total=self._total_bytes, completed=start_bytes, figures=""
        )
        self._started = time.monotonic()
        self._document_count = 0
        self._start_bytes = start_bytes
        self._read_bytes = start_bytes
        self._waiting_count = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def read(self, size_bytes: int) -> None:
        """One more document was read."""
        self._document_count += 1
        self._read_bytes += size_bytes
        if self._document_count % _DOCUMENTS_PER_UPDATE == 0:
            self._show_reading()

    def all_read(self) -> None:
        """The end of the file was reached."""
        self._show_reading()
        self._progress.update(self._reading, total=self._read_bytes or 1, completed=self._read_bytes or 1)

    def waiting(self, status: IngestStatus) -> None:
        """So much still waits."""
        if not self._waiting_count:
            self._waiting_count = status.queued_count
            self._waiting = self._progress.add_task("indexing", total=status.queued_count, figures="")
        done = max(0, self._waiting_count - status.queued_count)
        figures = f"{status.queued_count:,} documents wait"
        self._progress.update(self._waiting, completed=done, figures=figures)

    def _show_reading(self) -> None:
        seconds = max(time.monotonic() - self._started, 0.001)
        figures = f"{self._document_count:,} documents, {self._document_count / seconds:,.0f}/s"
        if self._total_bytes is not None:
            bytes_per_second = (self._read_bytes - self._start_bytes) / seconds
            left_bytes = max(0, self._total_bytes - self._read_bytes)
            figures += f", {_duration(left_bytes / max(bytes_per_second, 1.0))} left"
        self._progress.update(self._reading, completed=self._read_bytes, figures=figures)


def _duration(seconds: float) -> str:
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole_seconds:02}"


def _size_bytes(source: BinaryIO) -> int | None:
    """The size of a file; None of a pipe."""
    try:
        status = os.fstat(source.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
