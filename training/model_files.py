"""Directories of trained models, as the encoder reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer

from textmatch.models.calibration import PairClassifier
from textmatch.models.lora import ADAPTER_WEIGHTS, load_cross_encoder_directory
from textmatch.models.model_resolver import ADAPTER_CONFIG, is_adapter_directory

_CONFIG = "config_sentence_transformers.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
# What the tokenizer notes about the machine it was loaded on; a reader elsewhere must not be bound by it.
_LOCAL_TOKENIZER_KEYS = ("is_local", "local_files_only")


def save_bi_encoder(
    model: SentenceTransformer, output: Path, classifier: PairClassifier | None, *, adapter_base: str = ""
) -> None:
    """Write the model's directory, and the classifier of its embeddings if there is one.

    Args:
        adapter_base: what an adapter needs below it; empty if all weights are written.
    """
    model.save_pretrained(str(output), create_model_card=False)
    _forget_machine(output)
    if adapter_base:
        _finish_adapter(output, adapter_base)
    if classifier is not None:
        classifier.save(output)


def save_cross_encoder(
    model: CrossEncoder,
    output: Path,
    *,
    base_name: str,
    is_adapter: bool,
    score_range: tuple[float, float] | None,
) -> None:
    """Write the model's directory.

    Args:
        model: as it was trained.
        output: the directory.
        base_name: what an adapter needs below it.
        is_adapter: whether only the adapter is written.
        score_range: of the labels, for a model without activation; None if it has one.
    """
    model.save_pretrained(str(output), create_model_card=False)
    _forget_machine(output)
    if score_range is not None:
        _rewrite_json(output / _CONFIG, score_range=list(score_range))
    if is_adapter:
        _finish_adapter(output, base_name)


def load_trained(directory: Path, base: Path, device: str | None = None) -> CrossEncoder:
    """A cross-encoder that was saved so, in either form."""
    if is_adapter_directory(directory):
        return load_cross_encoder_directory(directory, base, device=device)
    model: CrossEncoder = CrossEncoder(str(directory), device=device, local_files_only=True)
    return model


def _finish_adapter(output: Path, base_name: str) -> None:
    _rewrite_json(output / ADAPTER_CONFIG, base_model_name_or_path=base_name)
    weights = output / ADAPTER_WEIGHTS
    # Half precision halves the file; the figures are taken after it.
    save_file({name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}, weights)


def _forget_machine(output: Path) -> None:
    # Two towers have a tokenizer each.
    for path in output.rglob(_TOKENIZER_CONFIG):
        _rewrite_json(path, dropped=_LOCAL_TOKENIZER_KEYS)


def _rewrite_json(path: Path, dropped: Sequence[str] = (), **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in dropped}
    path.write_text(json.dumps(kept | changes, indent=2, sort_keys=True) + "\n", encoding="utf-8")
