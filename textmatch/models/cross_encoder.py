"""Pairs of texts to scores, with any sentence-transformers cross-encoder that has one output.

The layers behind the transformer of a sequence-classification model, as plain arrays.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import sentence_transformers
import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from textmatch.models.calibration import Calibration, Scores, calibrated
from textmatch.models.devices import dtype_name
from textmatch.models.engines import EngineOptions, start_engine
from textmatch.models.fast_tokenizer import Pair, TokenizedText
from textmatch.models.lora import adapter_base_name, is_adapter_directory, load_cross_encoder_directory
from textmatch.models.model_resolver import CROSS_ENCODER_ORGANISATION, UnusableModel, find_model, model_id
from textmatch.models.native.kernel import NAME as NATIVE
from textmatch.models.native_models import CrossEncoderDescription, Dense
from textmatch.models.packed_inference import PackedCrossEncoder
from textmatch.models.torch_tokenizers import InputTokenizer, TransformerTokenizer, input_tokenizer

# Model type -> names of the layers over the first token's state, and what follows each.
_ROBERTA = (("classifier.dense", "tanh"), ("classifier.out_proj", ""))
_HEADS = {
    "bert": (("bert.pooler.dense", "tanh"), ("classifier", "")),
    "albert": (("albert.pooler", "tanh"), ("classifier", "")),
    "distilbert": (("pre_classifier", "relu"), ("classifier", "")),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def dense_head(classifier: PreTrainedModel) -> list[Dense] | None:
    """The head as layers, in order; None if this kind of model has another one."""
    layers = _HEADS.get(classifier.config.model_type)
    if layers is None:
        return None
    return [_dense(classifier.get_submodule(name), activation) for name, activation in layers]


def _dense(module: nn.Module, activation: str) -> Dense:
    weight, bias = (
        np.ascontiguousarray(module.get_parameter(name).detach().float().numpy())
        for name in ("weight", "bias")
    )
    return Dense(weight, bias, activation)


_log = logging.getLogger(__name__)

_CONFIG = "config_sentence_transformers.json"
_PROBE = (("A man is eating.", "Somebody has his dinner."), ("A man is eating.", "The stock market fell."))
# What the engine's precision may change in a logit.
_PROBE_TOLERANCE = 0.1


class CrossEncoder:
    """A loaded cross-encoder. `tokenize_pairs` may run in several threads at once; `score` in one."""

    def __init__(
        self,
        model: sentence_transformers.CrossEncoder,
        name: str,
        directory: Path,
        *,
        device: str,
        dtype: torch.dtype,
        max_tokens: int | None,
        engine: EngineOptions | None,
    ) -> None:
        if model.num_labels != 1:
            raise UnusableModel(f'"{name}" has {model.num_labels} outputs; a cross-encoder here has one')
        self.name = name
        self.model_id = model_id(name, directory)
        self._model = model
        self._tokenizer = input_tokenizer(model[0], max_tokens)
        self._prompt = model.prompts.get(model.default_prompt_name or "") or ""
        self._score_range = _score_range(model, directory)
        self._to_score = _score_function(model.activation_fn, self._score_range)
        self._calibration = Calibration.load(directory)
        self.max_tokens = self._tokenizer.max_tokens
        self.dtype = dtype_name(dtype)
        self.device = device
        self._packed = (
            _packed(model, self._tokenizer, engine, self.model_id, device, dtype) if engine else None
        )
        self.engine = self._packed.engine_name if self._packed else "sentence-transformers"
        if self._packed is None:
            _convert(model.to(device), dtype)

    @property
    def is_packed(self) -> bool:
        """Whether pairs of any lengths go into one batch without padding."""
        return self._packed is not None

    @classmethod
    def load(
        cls,
        directory: Path,
        name: str,
        *,
        device: str,
        dtype: torch.dtype,
        max_tokens: int | None = None,
        engine: EngineOptions | None = None,
    ) -> CrossEncoder:
        """Load a sentence-transformers directory, or an adapter over one; code in it is never run.

        Args:
            directory: where `find_model` found it.
            name: what it was asked for as.
            device: as `resolve_device` returns it.
            dtype: of the weights and of the computation; the last layer stays in float32.
            max_tokens: cut pairs shorter than the model itself does.
            engine: what runs the transformer; without one, sentence-transformers runs all of the model.

        Raises:
            UnusableEngine: the engine asked for is not installed.
            UnusableModel: it is no cross-encoder with one output, or its files contradict each other.
            ModelNotFound: the base model of an adapter is missing.
        """
        try:
            model = _load(directory)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
            raise UnusableModel(f'cannot load "{name}" as a cross-encoder: {error}') from error
        return cls(
            model.eval(), name, directory, device=device, dtype=dtype, max_tokens=max_tokens, engine=engine
        )

    def describe(self) -> tuple[CrossEncoderDescription, list[Dense]] | None:
        """What `PreparedCrossEncoder` needs to do the same without torch; None if it cannot."""
        head = dense_head(cast("Transformer", self._model[0]).model) if self.engine == NATIVE else None
        is_known = isinstance(self._model.activation_fn, nn.Sigmoid | nn.Identity)
        if head is None or not is_known or not isinstance(self._tokenizer, TransformerTokenizer):
            return None
        description = CrossEncoderDescription(
            self._tokenizer.describe(),
            self._prompt,
            tuple(layer.activation for layer in head),
            self._score_range,
        )
        return description, head

    def tokenize_pairs(self, pairs: Sequence[Pair]) -> list[TokenizedText]:
        """Tokens of each pair; if it is too long, the longer text is cut first."""
        prompted = [(self._prompt + first, second) for first, second in pairs] if self._prompt else pairs
        return self._tokenizer.tokenize(prompted, is_query=False)

    @torch.inference_mode()
    def score(self, batch: Sequence[TokenizedText]) -> tuple[Scores, Scores]:
        """One forward pass.

        Returns:
            Scores in 0..1, calibrated where the model has a calibration, and what the model said before: both
            (count,) float32, in the order of the batch.

        Raises:
            ValueError: a score is not finite.
        """
        features = self._packed.features(batch) if self._packed else self._tokenizer.collate(batch)
        raw = _raw_scores(self._model, features)
        if not raw.isfinite().all():
            raise ValueError(f"{self.model_id} returned a score that is not finite")
        scores = self._uncalibrated(raw)
        return calibrated(scores, self._calibration), raw.cpu().numpy()

    def uncalibrated(self, raw_scores: Scores) -> Scores:
        """What `score` would return beside these raw scores if the model had no calibration: (count,)."""
        return self._uncalibrated(torch.from_numpy(raw_scores))

    def _uncalibrated(self, raw: Tensor) -> Scores:
        scores: Scores = self._to_score(raw).clamp(0.0, 1.0).cpu().numpy()
        return scores


def _load(directory: Path) -> sentence_transformers.CrossEncoder:
    model: sentence_transformers.CrossEncoder
    if is_adapter_directory(directory):
        base = find_model(adapter_base_name(directory), CROSS_ENCODER_ORGANISATION)
        model = load_cross_encoder_directory(directory, base, device="cpu")
    else:
        model = sentence_transformers.CrossEncoder(
            str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
    return model


def _raw_scores(model: sentence_transformers.CrossEncoder, features: dict[str, Tensor]) -> Tensor:
    """(count,) float32: what the model says, without its activation."""
    on_device = {name: tensor.to(model.device) for name, tensor in features.items()}
    raw: Tensor = model(on_device)["scores"]
    return raw.float().reshape(-1)


@torch.inference_mode()
def _packed(
    model: sentence_transformers.CrossEncoder,
    tokenizer: InputTokenizer,
    options: EngineOptions,
    model_id: str,
    device: str,
    dtype: torch.dtype,
) -> PackedCrossEncoder | None:
    """Take the transformer out of the model and into an engine; None if no engine can run it."""
    first = model[0]
    if not isinstance(first, Transformer) or not isinstance(first.model, PreTrainedModel):
        return None
    classifier = first.model
    transformer = getattr(classifier, classifier.base_model_prefix, None)
    if not isinstance(transformer, PreTrainedModel):
        return None
    engine = start_engine(transformer, options, model_id=model_id, dtype=dtype, device=device)
    if engine is None:
        return None
    probe = tokenizer.tokenize(_PROBE, is_query=False)
    expected = _raw_scores(model, tokenizer.collate(probe))
    packed = PackedCrossEncoder(engine, classifier, first.tokenizer.pad_token_id or 0)
    model.to(device)
    if (_raw_scores(model, packed.features(probe)).cpu() - expected).abs().max() > _PROBE_TOLERANCE:
        _log.warning("%s reads more than the first token: its texts are not packed", model_id)
        setattr(classifier, classifier.base_model_prefix, transformer)
        return None
    return packed


def _convert(model: sentence_transformers.CrossEncoder, dtype: torch.dtype) -> None:
    """To `dtype`, but for the last layer: 8 bits of a logit would make ties of scores that differ."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    exact = {name: weight.float().clone() for name, weight in last.state_dict().items()}
    model.to(dtype)
    last.float().load_state_dict(exact)
    last.register_forward_pre_hook(lambda _, arguments: (arguments[0].float(),))


def _score_range(model: sentence_transformers.CrossEncoder, directory: Path) -> tuple[float, float] | None:
    """The least and the greatest label that a model without activation was trained on, if it says so."""
    config_file = directory / _CONFIG
    if not isinstance(model.activation_fn, nn.Identity) or not config_file.is_file():
        return None
    config: dict[str, Any] = json.loads(config_file.read_text())
    if "score_range" not in config:
        return None
    lowest, highest = map(float, config["score_range"])
    return lowest, highest


def _score_function(
    activation: Callable[..., Any] | None, score_range: tuple[float, float] | None
) -> Callable[[Tensor], Tensor]:
    """From what the model says to a score; bare logits of an unknown range go through the sigmoid."""
    if activation is not None and not isinstance(activation, nn.Identity):
        return activation
    if score_range is None:
        return nn.Sigmoid()
    lowest, highest = score_range
    return lambda raw: (raw - lowest) / (highest - lowest)
