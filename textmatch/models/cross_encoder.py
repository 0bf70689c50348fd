"""Scores of pairs with torch, from any sentence-transformers cross-encoder with one output."""

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
from textmatch.models.engines import NATIVE, REFERENCE, EngineConfig, start_engine
from textmatch.models.fast_tokenizer import Pair, TokenizedText
from textmatch.models.lora import load_cross_encoder_directory, set_normalization
from textmatch.models.model_resolver import (
    CROSS_ENCODER_ORGANISATION,
    MODEL_CONFIG,
    UnusableModel,
    adapter_base_name,
    find_model,
    is_adapter_directory,
    model_id,
)
from textmatch.models.native.models import CrossEncoderDescription, Dense
from textmatch.models.packed_inference import PackedCrossEncoder
from textmatch.models.torch_tokenizers import InputTokenizer, TransformerTokenizer, input_tokenizer

_log = logging.getLogger(__name__)

_PROBE = (("A man is eating.", "Somebody has his dinner."), ("A man is eating.", "The stock market fell."))
# The engine's precision changes a logit by less than this.
_PROBE_TOLERANCE = 0.1

# Model type -> layers over the first token's state, each with its activation.
_ROBERTA_HEAD = (("classifier.dense", "tanh"), ("classifier.out_proj", ""))
_HEADS = {
    "bert": (("bert.pooler.dense", "tanh"), ("classifier", "")),
    "albert": (("albert.pooler", "tanh"), ("classifier", "")),
    "distilbert": (("pre_classifier", "relu"), ("classifier", "")),
    "roberta": _ROBERTA_HEAD,
    "xlm-roberta": _ROBERTA_HEAD,
}


class TorchCrossEncoder:
    """A loaded cross-encoder. `tokenize_pairs` may run in several threads at once, `score` only in one."""

    def __init__(
        self,
        model: sentence_transformers.CrossEncoder,
        name: str,
        directory: Path,
        config: EngineConfig,
        max_tokens: int | None,
    ) -> None:
        if model.num_labels != 1:
            raise UnusableModel(f'"{name}" has {model.num_labels} outputs; a cross-encoder must have one')
        self.name = name
        self.model_id = model_id(name, directory, config.cache_directory)
        self._model = model
        self._tokenizer = input_tokenizer(model[0], max_tokens)
        self._prompt = model.prompts.get(model.default_prompt_name or "") or ""
        self._score_range = _score_range(model, directory)
        self._to_score = _score_function(model.activation_fn, self._score_range)
        self._calibration = Calibration.load(directory)
        self.max_tokens = self._tokenizer.max_tokens
        self.dtype = config.dtype
        self.device = config.device
        self._packed = _packed(model, self._tokenizer, config, self.model_id)
        self.engine = self._packed.engine_name if self._packed else "sentence-transformers"
        if self._packed is None:
            _convert(model.to(config.device), getattr(torch, config.dtype))

    @property
    def is_packed(self) -> bool:
        """Whether pairs of different lengths share a batch without padding."""
        return self._packed is not None

    @classmethod
    def load(
        cls, directory: Path, name: str, config: EngineConfig = REFERENCE, max_tokens: int | None = None
    ) -> TorchCrossEncoder:
        """Load a sentence-transformers directory or an adapter; code in it is never run.

        Args:
            directory: as `find_model` returns it.
            name: the requested name.
            config: device, precision and the engines to try. The last layer stays in float32.
            max_tokens: truncate pairs to this if the model itself reads more.

        Raises:
            UnusableModel: it is not a cross-encoder with one output, or its files contradict each other.
            ModelNotFound: the base model of an adapter is missing.
        """
        try:
            model = _load(directory, config.cache_directory)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
            raise UnusableModel(f'cannot load "{name}" as a cross-encoder: {error}') from error
        return cls(model.eval(), name, directory, config, max_tokens)

    def describe(self) -> CrossEncoderDescription | None:
        """The description with which `NativeCrossEncoder` runs the model without torch; None if it cannot."""
        head = _dense_head(cast("Transformer", self._model[0]).model) if self.engine == NATIVE else None
        is_known = isinstance(self._model.activation_fn, nn.Sigmoid | nn.Identity)
        if head is None or not is_known or not isinstance(self._tokenizer, TransformerTokenizer):
            return None
        return CrossEncoderDescription(self._tokenizer.describe(), self._prompt, head, self._score_range)

    def tokenize_pairs(self, pairs: Sequence[Pair]) -> list[TokenizedText]:
        """Tokenize each pair; in a pair that is too long, the longer text is truncated first."""
        prompted = [(self._prompt + first, second) for first, second in pairs] if self._prompt else pairs
        return self._tokenizer.tokenize(prompted, is_query=False)

    @torch.inference_mode()
    def score(self, batch: Sequence[TokenizedText]) -> tuple[Scores, Scores]:
        """One forward pass.

        Returns:
            Scores in 0..1, calibrated if the model has a calibration, and the model's raw outputs: both
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
        """The scores that `score` would return for these raw scores without a calibration: (count,)."""
        return self._uncalibrated(torch.from_numpy(raw_scores))

    def _uncalibrated(self, raw: Tensor) -> Scores:
        scores: Scores = self._to_score(raw).clamp(0.0, 1.0).cpu().numpy()
        return scores


def _load(directory: Path, cache_directory: Path) -> sentence_transformers.CrossEncoder:
    model: sentence_transformers.CrossEncoder
    if is_adapter_directory(directory):
        base = find_model(adapter_base_name(directory), CROSS_ENCODER_ORGANISATION, cache_directory)
        model = load_cross_encoder_directory(directory, base, device="cpu")
    else:
        model = sentence_transformers.CrossEncoder(
            str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        set_normalization(model, directory)
    return model


def _raw_scores(model: sentence_transformers.CrossEncoder, features: dict[str, Tensor]) -> Tensor:
    """(count,) float32: the model's outputs without its activation."""
    on_device = {name: tensor.to(model.device) for name, tensor in features.items()}
    raw: Tensor = model(on_device)["scores"]
    return raw.float().reshape(-1)


@torch.inference_mode()
def _packed(
    model: sentence_transformers.CrossEncoder, tokenizer: InputTokenizer, config: EngineConfig, model_id: str
) -> PackedCrossEncoder | None:
    """Move the transformer from the model into an engine; None if no engine can run it."""
    first = model[0]
    if not isinstance(first, Transformer) or not isinstance(first.model, PreTrainedModel):
        return None
    classifier = first.model
    transformer = getattr(classifier, classifier.base_model_prefix, None)
    if not isinstance(transformer, PreTrainedModel):
        return None
    engine = start_engine(transformer, config, model_id)
    if engine is None:
        return None
    probe = tokenizer.tokenize(_PROBE, is_query=False)
    expected = _raw_scores(model, tokenizer.collate(probe))
    packed = PackedCrossEncoder(engine, classifier, first.tokenizer.pad_token_id or 0)
    model.to(config.device)
    if (_raw_scores(model, packed.features(probe)).cpu() - expected).abs().max() > _PROBE_TOLERANCE:
        _log.warning("the head of %s reads more than the first token: its texts are not packed", model_id)
        setattr(classifier, classifier.base_model_prefix, transformer)
        return None
    return packed


def _convert(model: sentence_transformers.CrossEncoder, dtype: torch.dtype) -> None:
    """Convert all but the last layer: bfloat16 logits have 8 bits and would make different scores equal."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    exact = {name: weight.float().clone() for name, weight in last.state_dict().items()}
    model.to(dtype)
    last.float().load_state_dict(exact)
    last.register_forward_pre_hook(lambda _, arguments: (arguments[0].float(),))


def _score_range(model: sentence_transformers.CrossEncoder, directory: Path) -> tuple[float, float] | None:
    """The lowest and highest label that a model without activation was trained on, if its config says so."""
    config_file = directory / MODEL_CONFIG
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
    """Map raw outputs to scores; logits without a known range go through the sigmoid."""
    if activation is not None and not isinstance(activation, nn.Identity):
        return activation
    if score_range is None:
        return nn.Sigmoid()
    lowest, highest = score_range
    return lambda raw: (raw - lowest) / (highest - lowest)


def _dense_head(classifier: PreTrainedModel) -> tuple[Dense, ...] | None:
    """The layers of the head in order; None if this type of model has another kind of head."""
    layers = _HEADS.get(classifier.config.model_type)
    if layers is None:
        return None
    return tuple(_dense(classifier.get_submodule(name), activation) for name, activation in layers)


def _dense(module: nn.Module, activation: str) -> Dense:
    weight, bias = (
        np.ascontiguousarray(module.get_parameter(name).detach().float().numpy())
        for name in ("weight", "bias")
    )
    return Dense(weight, bias, activation)
