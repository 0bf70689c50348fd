"""Scores of pairs with torch, from any sentence-transformers cross-encoder with one output, or with classes.

A classifier of pairs has several outputs and names for them, such as contradiction, entailment and neutral.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import sentence_transformers
import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from textmatch.models.calibration import Calibration, Scores, calibrated, class_scores
from textmatch.models.engines import NATIVE, REFERENCE, Engine, EngineConfig, start_engine
from textmatch.models.fast_tokenizer import Pair, TokenizedText
from textmatch.models.lora import MODEL_OPTIONS, load_cross_encoder_directory, set_normalization
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
from textmatch.models.packed_inference import (
    ALL_TOKENS,
    FIRST_TOKEN,
    LAST_TOKEN,
    PackedBiEncoder,
    PackedCrossEncoder,
)
from textmatch.models.probes import Disagreement, Outputs, check_agreement, probe_pairs
from textmatch.models.torch_tokenizers import (
    InputTokenizer,
    TransformerTokenizer,
    gives_last_states,
    input_tokenizer,
)
from textmatch.types import Truncation

_log = logging.getLogger(__name__)

# As transformers names the problems whose outputs are not the classes of a softmax.
_NOT_CLASSES = ("regression", "multi_label_classification")
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
        self.labels = _labels(model, name)
        self.name = name
        self.model_id = model_id(name, directory, config.cache_directory)
        self._model = model
        self._tokenizer = input_tokenizer(model[0], max_tokens, reads_pairs=True)
        self._prompt = model.prompts.get(model.default_prompt_name or "") or ""
        self._score_range = _score_range(model, directory)
        # The softmax of a classifier is that of `class_scores`.
        self._to_score = _score_function(None if self.labels else model.activation_fn, self._score_range)
        self._calibration = Calibration.load(directory)
        self.max_tokens = self._tokenizer.max_tokens
        self.dtype = config.dtype
        self.device = config.device
        self._packed: _Packed | None = None
        self._run_fastest(config)
        self.engine = self._packed.engine_name if self._packed else "sentence-transformers"

    @torch.inference_mode()
    def _run_fastest(self, config: EngineConfig) -> None:
        """Choose packed rows, or else the library, by what agrees with the library in float32.

        Raises:
            UnusableModel: neither agrees.
        """
        probe = self.tokenize_pairs(probe_pairs(self.max_tokens))
        try:
            alone = [_model_outputs(self._model, self._tokenizer.collate([pair])) for pair in probe]
        except Exception as error:  # models fail in any way
            raise UnusableModel(f'its own library cannot run "{self.name}": {error!r}') from error
        expected = torch.cat(alone).numpy()  # (pairs, outputs)
        self._packed = _packed(self._model, self._tokenizer, probe, expected, config, self.model_id)
        if self._packed is not None:
            return
        _convert(self._model.to(config.device), getattr(torch, config.dtype))
        try:
            together = _model_outputs(self._model, self._tokenizer.collate(probe)).cpu().numpy()
            check_agreement(together, expected, config.dtype, are_vectors=False)
        except Disagreement as error:
            reason = f"{error}, or depend on the pairs that share a batch"
            raise UnusableModel(f'cannot serve "{self.name}": {reason}') from error

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
            UnusableModel: it is not a cross-encoder, has several outputs that are not classes, or its files
                contradict each other.
            ModelNotFound: the base model of an adapter is missing.
        """
        try:
            model = _load(directory, config.cache_directory)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
            raise UnusableModel(f'cannot load "{name}" as a cross-encoder: {error}') from error
        return cls(model.eval(), name, directory, config, max_tokens)

    def describe(self) -> CrossEncoderDescription | None:
        """The description with which `NativeCrossEncoder` runs the model without torch; None if it cannot."""
        reads_first = isinstance(self._packed, _PackedHead) and self._packed.states.reads == FIRST_TOKEN
        is_native = self.engine == NATIVE and reads_first
        head = _dense_head(cast("Transformer", self._model[0]).model) if is_native else None
        is_known = bool(self.labels) or isinstance(self._model.activation_fn, nn.Sigmoid | nn.Identity)
        if head is None or not is_known or not isinstance(self._tokenizer, TransformerTokenizer):
            return None
        return CrossEncoderDescription(
            self._tokenizer.describe(), self._prompt, head, self._score_range, self.labels
        )

    def tokenize_pairs(
        self, pairs: Sequence[Pair], *, truncation: Truncation | None = None
    ) -> list[TokenizedText]:
        """Tokenize each pair; in a pair that is too long, the longer text is truncated first."""
        return self._tokenizer.tokenize(pairs, is_query=False, prompt=self._prompt, truncation=truncation)

    def score(self, batch: Sequence[TokenizedText]) -> tuple[Scores, Scores]:
        """The scores and raw scores of `outputs`, both (count,)."""
        rows = self.outputs(batch)
        return rows[:, 0], rows[:, 1]

    @torch.inference_mode()
    def outputs(self, batch: Sequence[TokenizedText]) -> Scores:
        """One forward pass.

        Returns:
            (count, 2 + labels) float32, in the order of the batch: the score in 0..1, calibrated if the model
            has a calibration; the raw score; the probability of each class, if there are several.

        Raises:
            ValueError: a score is not finite.
        """
        if self._packed:
            found = self._packed.outputs(batch)
        else:
            found = _model_outputs(self._model, self._tokenizer.collate(batch))
        if not found.isfinite().all():
            raise ValueError(f"{self.model_id} returned a score that is not finite")
        raw, probabilities = class_scores(found.cpu().numpy(), self.labels)
        scores = calibrated(self.uncalibrated(raw), self._calibration)
        return np.column_stack((scores, raw, probabilities))

    def uncalibrated(self, raw_scores: Scores) -> Scores:
        """The scores that `score` would return for these raw scores without a calibration: (count,)."""
        scores: Scores = self._to_score(torch.from_numpy(raw_scores)).clamp(0.0, 1.0).numpy()
        return scores


def _load(directory: Path, cache_directory: Path) -> sentence_transformers.CrossEncoder:
    model: sentence_transformers.CrossEncoder
    if is_adapter_directory(directory):
        base = find_model(adapter_base_name(directory), CROSS_ENCODER_ORGANISATION, cache_directory)
        model = load_cross_encoder_directory(directory, base, device="cpu")
    else:
        model = sentence_transformers.CrossEncoder(
            str(directory), device="cpu", local_files_only=True, model_kwargs=MODEL_OPTIONS
        )
        set_normalization(model, directory)
    return model


def _labels(model: sentence_transformers.CrossEncoder, name: str) -> tuple[str, ...]:
    """The names of the classes of a model with several outputs; none for a model with one."""
    count = model.num_labels
    if count == 1:
        return ()
    config = cast("Transformer", model[0]).model.config
    is_softmax = isinstance(model.activation_fn, nn.Identity | nn.Softmax)
    if count < 1 or not is_softmax or getattr(config, "problem_type", None) in _NOT_CLASSES:
        raise UnusableModel(f'"{name}" has {count} outputs that are not the classes of a softmax')
    named: Mapping[Any, str] = config.id2label or {}
    return tuple(str(named.get(position, f"LABEL_{position}")) for position in range(count))


def _model_outputs(model: sentence_transformers.CrossEncoder, features: dict[str, Any]) -> Tensor:
    """(count, outputs) float32: the model's outputs without its activation."""
    on_device = {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in features.items()
    }
    raw: Tensor = model(on_device)["scores"]
    return raw.float().reshape(raw.shape[0], -1)


class _Packed(Protocol):
    """A model whose transformer runs in an engine."""

    engine_name: str

    def outputs(self, batch: Sequence[TokenizedText]) -> Tensor:
        """(count, outputs) float32."""
        ...


class _PackedHead:
    """A transformer with a scoring head of its own."""

    def __init__(
        self,
        engine: Engine,
        model: sentence_transformers.CrossEncoder,
        transformer: PreTrainedModel,
        pad_id: int,
    ) -> None:
        self.engine_name = engine.name
        self.states = PackedCrossEncoder(engine, transformer, pad_id)
        self._model = model

    def outputs(self, batch: Sequence[TokenizedText]) -> Tensor:
        return _model_outputs(self._model, self.states.features(batch))


class _PackedModules:
    """A bare transformer, and modules that pool its states and score them."""

    def __init__(self, engine: Engine, modules: Sequence[nn.Module], pad_id: int) -> None:
        self.engine_name = engine.name
        self._packed = PackedBiEncoder(engine, modules, pad_id, output="scores")

    def outputs(self, batch: Sequence[TokenizedText]) -> Tensor:
        return self._packed.embed(batch).float().reshape(len(batch), -1)


def _packed(
    model: sentence_transformers.CrossEncoder,
    tokenizer: InputTokenizer,
    probe: Sequence[TokenizedText],
    expected: Outputs,
    config: EngineConfig,
    model_id: str,
) -> _Packed | None:
    """Move the transformer from the model into an engine; None if no engine computes the expected scores."""
    first, *following = model.children()
    if not isinstance(first, Transformer) or not isinstance(first.model, PreTrainedModel):
        return None
    whole = first.model
    transformer = getattr(whole, whole.base_model_prefix, whole)
    if not isinstance(transformer, PreTrainedModel):
        return None
    if transformer is whole and not gives_last_states(first, tokenizer):
        return None
    engine = start_engine(transformer, config, model_id, tokenizer.max_tokens)
    if engine is None:
        return None
    pad_id = first.tokenizer.pad_token_id or 0
    if transformer is whole:
        modules = _PackedModules(engine, [module.to(config.device) for module in following], pad_id)
        return modules if _agrees(modules, probe, expected, config, model_id) else None
    head = _PackedHead(engine, model, whole, pad_id)
    model.to(config.device)
    for reads in (FIRST_TOKEN, LAST_TOKEN, ALL_TOKENS):
        head.states.reads = reads
        if _agrees(head, probe, expected, config, model_id):
            return head
    setattr(whole, whole.base_model_prefix, transformer)
    return None


def _agrees(
    packed: _Packed, probe: Sequence[TokenizedText], expected: Outputs, config: EngineConfig, model_id: str
) -> bool:
    try:
        found = packed.outputs(probe).cpu().numpy()
        check_agreement(found, expected, config.dtype, are_vectors=False)
    except (Disagreement, RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
        _log.info("a way to pack %s fails: %s", model_id, error)
        return False
    return True


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
