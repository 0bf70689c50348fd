"""What a model is called: its name and a hash of its files, so that other weights are another model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from textmatch.models.adapter_config import adapter_base_name, is_adapter_directory
from textmatch.models.resolve import CROSS_ENCODER_ORGANISATION, find_model

_HASH_BYTES = 6
_MAX_NAME_CHARACTERS = 200
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_NOT_THE_MODEL = re.compile(r"(?:^|/)(?:\.|README|__pycache__/)", re.IGNORECASE)


def model_id(name: str, directory: Path) -> str:
    """`<name>-<12 hex>`: fit for the name of a Qdrant collection.

    Args:
        name: as the model was asked for; of a path or a hub name only the last part is kept.
        directory: its files; an adapter's base model counts as well.
    """
    short_name = _UNSAFE.sub("-", Path(name).name).strip("-.") or "model"
    return f"{short_name[:_MAX_NAME_CHARACTERS]}-{_content_hash(directory)}"


def _content_hash(directory: Path) -> str:
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for path in _files(directory):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    if is_adapter_directory(directory):
        base = find_model(adapter_base_name(directory), CROSS_ENCODER_ORGANISATION)
        digest.update(_content_hash(base).encode())
    return digest.hexdigest()


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*"), key=lambda path: path.relative_to(directory).as_posix()):
        if path.is_file() and not _NOT_THE_MODEL.search(path.relative_to(directory).as_posix()):
            yield path
