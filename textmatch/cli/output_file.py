"""The file of `--output`: JSON lines that `--resume` continues after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from textmatch.cli.errors import CommandFailed, message_of
from textmatch.console import json_line
from textmatch.errors import TextMatchError


class OutputFile:
    """JSON lines. Each is in the file as soon as it is added: a crash of this process does not lose it.

    Args:
        resume: continue the file if it exists.

    Raises:
        CommandFailed: the file has lines and is not to be continued, or it cannot be written.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self._has_added = False
        if not resume and path.exists() and path.stat().st_size:
            raise CommandFailed(f"{path} exists; continue it with --resume, or delete it")
        try:
            self._file = path.open("r+b" if path.exists() else "w+b")
        except OSError as error:
            raise CommandFailed(f"{path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def lines(self) -> Iterator[bytes]:
        """The lines of an earlier run. At the end, an incomplete last line is dropped."""
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            yield line
        self._file.seek(end)
        self._file.truncate()

    def add(self, item: Any) -> None:
        """Add a line.

        Raises:
            CommandFailed: it cannot be written.
        """
        try:
            self._file.write(json_line(item).encode())
            self._file.flush()
        except OSError as error:
            raise CommandFailed(f"{self.path} cannot be written: {error.strerror}") from error
        self._has_added = True

    @contextmanager
    def hint_to_resume(self) -> Iterator[None]:
        """Add to an error how to go on, if anything was added."""
        try:
            yield
        except TextMatchError as error:
            if not self._has_added:
                raise
            hint = "repeat the command with --resume for the rest"
            raise CommandFailed(f"{message_of(error)}; {hint}") from error
