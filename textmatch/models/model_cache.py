"""Files in the cache: a description and arrays, in one safetensors file."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

_log = logging.getLogger(__name__)

_DESCRIPTION = "description"


class UnreadableCache(Exception):
    """There is no such file, or it holds something else."""


def write_cache(path: Path, description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Never a half-written file under the final name; a cache that cannot be written is no reason to fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            unfinished = Path(scratch) / path.name
            save_file(dict(arrays), unfinished, {_DESCRIPTION: json.dumps(description)})
            unfinished.replace(path)
    except OSError as error:
        _log.warning("cannot write into the cache: %s", error)


def read_cache(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `write_cache` was given.

    Raises:
        UnreadableCache: there is no such file, or it holds something else.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            description: dict[str, Any] = json.loads(file.metadata()[_DESCRIPTION])
            return description, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UnreadableCache(f'"{path}": {error}') from error
