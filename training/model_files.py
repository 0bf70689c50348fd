"""The directory of a trained model, in the form that the encoder loads."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from typer import Argument, echo

from textmatch.errors import InvalidInput
from textmatch.models.calibration import PairClassifier
from textmatch.models.lora import ADAPTER_WEIGHTS, load_cross_encoder_directory
from textmatch.models.model_resolver import (
    ADAPTER_CONFIG,
    BI_ENCODER_ORGANISATION,
    find_model,
    is_adapter_directory,
)
from training.evaluation.scorers import is_cross_encoder

# Loss and metrics by step, relative to a model's directory. Hidden files do not count for the model's id.
HISTORY = Path(".training") / "history.json"
_CONFIG = "config_sentence_transformers.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
# The tokenizer records how it was loaded on this machine, which must not affect other machines.
_LOCAL_TOKENIZER_KEYS = ("is_local", "local_files_only")


def save_bi_encoder(
    model: SentenceTransformer, output: Path, classifier: PairClassifier | None, *, adapter_base: str = ""
) -> None:
    """Write the model's directory, and its pair classifier if it has one.

    Args:
        model: the trained model.
        output: the directory.
        classifier: of its embeddings.
        adapter_base: the base model of an adapter, as `--base` gives it; empty if all weights are written.
    """
    _save(model, output, adapter_base)
    if classifier is not None:
        classifier.save(output)


def save_cross_encoder(
    model: CrossEncoder, output: Path, *, score_range: tuple[float, float] | None, adapter_base: str = ""
) -> None:
    """Write the model's directory.

    Args:
        model: the trained model.
        output: the directory.
        score_range: of the labels, for a model without a sigmoid; None if it has one.
        adapter_base: as in `save_bi_encoder`.
    """
    _save(model, output, adapter_base)
    if score_range is not None:
        _rewrite_json(output / _CONFIG, score_range=list(score_range))


def load_trained(directory: Path, base: Path, device: str | None = None) -> CrossEncoder:
    """A cross-encoder that `save_cross_encoder` wrote, with all weights or as an adapter of `base`."""
    if is_adapter_directory(directory):
        return load_cross_encoder_directory(directory, base, device=device)
    model: CrossEncoder = CrossEncoder(str(directory), device=device, local_files_only=True)
    return model


def export_onnx(
    model: Annotated[Path, Argument(help="Directory of a trained bi-encoder or cross-encoder.")],
    output: Annotated[Path, Argument(help="Directory to write, with onnx/model.onnx.")],
) -> None:
    """Export a model to ONNX by the exporter of sentence-transformers, for other programs.

    They load it with SentenceTransformer(OUTPUT, backend="onnx") or CrossEncoder. The encoder serves MODEL.
    """
    if output.exists():
        raise InvalidInput.of_field("OUTPUT", f'"{output}" already exists')
    directory = find_model(str(model), BI_ENCODER_ORGANISATION)
    if is_adapter_directory(directory):
        raise InvalidInput.of_field("MODEL", "is an adapter; export a model with all weights")
    if importlib.util.find_spec("optimum") is None:
        problem = "needs a library that is not installed: pip install sentence-transformers[onnx]"
        raise InvalidInput.of_field("export", problem)
    model_class = CrossEncoder if is_cross_encoder(directory) else SentenceTransformer
    exported = model_class(
        str(directory), backend="onnx", local_files_only=True, model_kwargs={"export": True}
    )
    exported.save_pretrained(str(output))
    echo(f"saved to {output}")


def save_history(directory: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write the training history into a model's directory."""
    path = directory / HISTORY
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")


def _save(model: SentenceTransformer | CrossEncoder, output: Path, adapter_base: str) -> None:
    model.save_pretrained(str(output), create_model_card=False)
    # Two towers have a tokenizer each.
    for path in output.rglob(_TOKENIZER_CONFIG):
        _rewrite_json(path, dropped=_LOCAL_TOKENIZER_KEYS)
    if adapter_base:
        # A relative path is found from one folder only.
        base = str(Path(adapter_base).resolve()) if Path(adapter_base).is_dir() else adapter_base
        _rewrite_json(output / ADAPTER_CONFIG, base_model_name_or_path=base)
        weights = output / ADAPTER_WEIGHTS
        # Half precision halves the file. The published metrics are those of the saved weights.
        save_file({name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}, weights)


def _rewrite_json(path: Path, dropped: Sequence[str] = (), **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in dropped}
    path.write_text(json.dumps(kept | changes, indent=2, sort_keys=True) + "\n", encoding="utf-8")
