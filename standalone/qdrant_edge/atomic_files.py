"""Files that are replaced atomically, and the lock of the data folder."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

_LOCK_FILE = "lock"


class FolderInUse(Exception):
    """Another process holds the data folder."""


class FolderLock:
    """Holds a data folder for this process until `release`; the file names the holder."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; create it if it does not exist.

        Raises:
            FolderInUse: naming the process that holds it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise FolderInUse(f"data folder {folder} is in use by process {holder}") from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Release the folder for other processes."""
        os.close(self._descriptor)


def write_json(path: Path, value: Any) -> None:
    """Replace a file in one step; a crash leaves the old content or the new."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def sync_folder(folder: Path) -> None:
    """Make creations, renames and deletions in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Make the content of the files in a folder survive a power cut."""
    for path in folder.iterdir():
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # the engine drops old log files at any time
            continue
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
