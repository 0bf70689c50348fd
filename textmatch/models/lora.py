"""Loads LoRA adapters, which is how textmatch ships its own models, and merges them into their base model.

An adapter directory has the format of PEFT and sentence-transformers. Four files are used:
`adapter_config.json` names the base model, `adapter_model.safetensors` has the low-rank deltas and a
cross-encoder's scoring head, `tokenizer_config.json` has the maximum length of a text, and the optional
`config_sentence_transformers.json` has prompts and a normalization. Everything else comes from the base.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import normalizers
from transformers.utils import logging as transformers_logging

from textmatch.errors import ModelNotFound
from textmatch.models.model_resolver import ADAPTER_CONFIG, MODEL_CONFIG, read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Of transformers: without `use_safetensors` it would read pickle where it finds no file of its own name.
MODEL_OPTIONS: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
_TOKENIZER_CONFIG = "tokenizer_config.json"
_PROMPTS = "prompts"
_NORMALIZATION = "normalization"
_NFKC = "NFKC"


def load_cross_encoder_directory(path: Path, base: Path, *, device: str | None = None) -> CrossEncoder:
    """Load the cross-encoder of an adapter and its base model, with merged weights. Needs no network.

    Args:
        path: the adapter's directory.
        base: the base model's directory.
        device: as torch names it; None: sentence-transformers chooses.

    Returns:
        A model whose `predict` returns scores in 0..1.

    Raises:
        ModelNotFound: one of the adapter's files is missing. Only safetensors count as weights, since loading
            other formats can run code.
    """
    _check_files(path)
    with _known_warnings_silenced():
        model: CrossEncoder = CrossEncoder(
            str(base),
            num_labels=1,
            max_length=_max_length_tokens(path),
            device=device,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    merge_adapter(model[0], path)
    set_normalization(model, path)
    model.eval()
    return model


def load_bi_encoder_directory(path: Path, base: Path) -> SentenceTransformer:
    """Load the bi-encoder of an adapter and its base model, with merged weights, in float32 on the CPU.

    Pooling is the base model's. So are the prompts, unless the adapter's configuration has `prompts`. An
    adapter that was trained without prompts has `"prompts": {}`.

    Raises:
        ModelNotFound: as above.
        ValueError: the adapter asks for an unknown normalization.
    """
    _check_files(path)
    with _known_warnings_silenced():
        model = SentenceTransformer(
            str(base), device="cpu", local_files_only=True, model_kwargs=MODEL_OPTIONS
        )
    merge_adapter(model[0], path)
    model.max_seq_length = _max_length_tokens(path)
    prompts = _config(path).get(_PROMPTS)
    if prompts is not None:
        model.prompts = {"query": "", "document": ""} | prompts
    set_normalization(model, path)
    model.eval()
    return model


def set_normalization(model: SentenceTransformer | CrossEncoder, path: Path) -> None:
    """Normalize texts before they are tokenized, if the configuration has `"normalization": "NFKC"`.

    NFKC turns full-width forms such as ＡＢＣ into ABC. The normalizer becomes a part of the tokenizer and
    is saved with it. Other models are computed as their own library computes them.

    Raises:
        ValueError: the normalization is unknown, or the model has no fast tokenizer.
    """
    name = _config(path).get(_NORMALIZATION)
    if name is None:
        return
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if name != _NFKC or backend is None:
        raise ValueError(f'"{path}" asks for the normalization "{name}", which is not supported')
    steps = [normalizers.NFKC(), *([backend.normalizer] if backend.normalizer else [])]
    backend.normalizer = normalizers.Sequence(steps)


def _config(path: Path) -> dict[str, Any]:
    config = path / MODEL_CONFIG
    return read_json(config) if config.is_file() else {}


def _check_files(path: Path) -> None:
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, _TOKENIZER_CONFIG):
        if not (path / name).is_file():
            raise ModelNotFound(str(path), f'the adapter directory "{path}" has no {name}')


def _max_length_tokens(path: Path) -> int:
    return int(read_json(path / _TOKENIZER_CONFIG)["model_max_length"])


def merge_adapter(transformer: Any, path: Path) -> None:
    """Add the low-rank deltas in `path` to a model's first module; its scoring head replaces the model's."""
    with _known_warnings_silenced():
        merged = PeftModel.from_pretrained(transformer.model, str(path)).merge_and_unload()
    # PEFT has frozen the base model; the caller may train it.
    transformer.model = merged.requires_grad_(True)


@contextmanager
def _known_warnings_silenced() -> Iterator[None]:
    """Hide that the base model has no scoring head, which the adapter has, and PEFT's use of an old name."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
