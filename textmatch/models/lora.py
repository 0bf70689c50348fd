"""Low-rank adapters over a base model: how the models of our own are shipped.

An adapter directory is what PEFT and sentence-transformers write: `adapter_config.json` names the base model,
`adapter_model.safetensors` holds the low-rank deltas and, of a cross-encoder, the scoring head, the rest is
the usual configuration. Loading adds the deltas to the base weights; what remains is an ordinary model.

What an adapter directory says of itself. Free of torch, for code that only looks for models.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers.utils import logging as transformers_logging

from textmatch.errors import ModelNotFound

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter_directory(path: Path) -> bool:
    """Whether `path` holds an adapter, not a full model."""
    return (path / ADAPTER_CONFIG).is_file()


def adapter_base_name(path: Path) -> str:
    """The name of the model that the adapter in `path` was trained on."""
    return str(read_json(path / ADAPTER_CONFIG)["base_model_name_or_path"])


def is_cross_encoder_adapter(path: Path) -> bool:
    """Whether the adapter in `path` reads pairs; else it makes embeddings."""
    return bool(read_json(path / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS")


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TOKENIZER_CONFIG = "tokenizer_config.json"


def load_cross_encoder_directory(path: Path, base: Path, *, device: str | None = None) -> CrossEncoder:
    """The cross-encoder made of the base model in `base` and the adapter in `path`, with merged weights.

    Needs no network. `predict` returns scores in 0..1.

    Raises:
        ModelNotFound: one of the adapter's files is missing. Weights in another format than safetensors count
            as missing, since loading them could run code.
    """
    _check_files(path)
    with _known_complaints_silenced():
        model: CrossEncoder = CrossEncoder(
            str(base), num_labels=1, max_length=_max_length_tokens(path), device=device, local_files_only=True
        )
        _merge(model[0], path)
    model.eval()
    return model


def load_bi_encoder_directory(path: Path, base: Path) -> SentenceTransformer:
    """The bi-encoder made of the base model in `base` and the adapter in `path`, merged, in float32.

    Pooling and prompts are the base model's; only its longest text may differ.

    Raises:
        ModelNotFound: as above.
    """
    _check_files(path)
    with _known_complaints_silenced():
        model = SentenceTransformer(
            str(base), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        _merge(model[0], path)
    model.max_seq_length = _max_length_tokens(path)
    model.eval()
    return model


def _check_files(path: Path) -> None:
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, _TOKENIZER_CONFIG):
        if not (path / name).is_file():
            raise ModelNotFound(str(path), f'the adapter directory "{path}" has no {name}')


def _max_length_tokens(path: Path) -> int:
    return int(read_json(path / _TOKENIZER_CONFIG)["model_max_length"])


def _merge(transformer: Any, path: Path) -> None:
    merged = PeftModel.from_pretrained(transformer.model, str(path)).merge_and_unload()
    # PEFT has frozen the base; training may go on from here.
    transformer.model = merged.requires_grad_(True)


@contextmanager
def _known_complaints_silenced() -> Iterator[None]:
    """Hides that the base has no scoring head, which the adapter brings, and PEFT's use of an old name."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
