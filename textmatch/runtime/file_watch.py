"""Detects that files were replaced: certificates and API keys are rotated while the process runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

_Signature = tuple[tuple[int, int, int], ...]


class FileWatch:
    """Remembers the state of some files at the last check.

    Args:
        check_seconds: the files are checked at most this often; 0 checks them on every call.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self, paths: Iterable[Path], check_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = tuple(paths)
        self._check_seconds = check_seconds
        self._clock = clock
        self._checked_at = clock()
        self._signature = self._read_signature()

    def has_changed(self) -> bool:
        """Whether a file was written, replaced or removed since the last check. True once for each change."""
        now = self._clock()
        if now - self._checked_at < self._check_seconds:
            return False
        self._checked_at = now
        previous, self._signature = self._signature, self._read_signature()
        return self._signature != previous

    def _read_signature(self) -> _Signature:
        return tuple(map(_signature_of, self._paths))


def _signature_of(path: Path) -> tuple[int, int, int]:
    """The state of a file; zeros if it is missing. Follows links: Kubernetes switches links to secrets."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size
