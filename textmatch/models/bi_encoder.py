"""Embeddings with torch, from any model in the sentence-transformers format.

Mean and first-token (CLS) pooling of packed rows is in packed_inference.py, that of the native engine in
native/models.py. Other poolings are computed by sentence-transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import LSTM, Pooling
from torch import Tensor, nn
from transformers import PreTrainedModel

from textmatch.models.calibration import Calibration, CosineScorer, PairClassifier
from textmatch.models.engines import NATIVE, REFERENCE, EngineConfig, start_engine
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.models.lora import MODEL_OPTIONS, load_bi_encoder_directory, set_normalization
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    DEFAULT_CACHE_DIRECTORY,
    UnusableModel,
    adapter_base_name,
    find_model,
    is_adapter_directory,
    model_id,
)
from textmatch.models.native.models import BiEncoderDescription
from textmatch.models.packed_inference import PackedBiEncoder
from textmatch.models.probes import Disagreement, check_agreement, probe_texts
from textmatch.models.prompts import Prompts, prompts_of
from textmatch.models.torch_tokenizers import (
    InputTokenizer,
    TransformerTokenizer,
    gives_last_states,
    input_tokenizer,
)
from textmatch.types import Truncation
from textmatch.vectors import Embeddings, normalise

_log = logging.getLogger(__name__)

# Their scores are not bounded, unless the model itself makes all embeddings equally long.
_UNBOUNDED_SIMILARITIES = ("dot", "euclidean", "manhattan")


@dataclass(frozen=True)
class _Role:
    """How the model encodes queries, or documents."""

    task: str
    tokenizer: InputTokenizer
    prompt: str
    # Leading tokens that pooling ignores.
    prompt_tokens: int


class TorchBiEncoder:
    """A loaded bi-encoder. `tokenize` may run in several threads at once, `embed` only in one."""

    def __init__(
        self,
        model: SentenceTransformer,
        name: str,
        directory: Path,
        config: EngineConfig,
        max_tokens: int | None,
        prompts: Prompts | None,
    ) -> None:
        self.name = name
        self.model_id = model_id(name, directory, config.cache_directory, prompts)
        self.device = config.device
        self.dtype = config.dtype
        self.cosine = CosineScorer(Calibration.load(directory))
        self.pair_classifier = PairClassifier.load(directory)
        wanted = prompts_of(name, model.prompts, prompts)
        self._query = _role(model, "query", wanted.query, max_tokens)
        self._document = _role(model, "document", wanted.document, max_tokens)
        self._tells_roles_apart = self._query.prompt_tokens != self._document.prompt_tokens or any(
            isinstance(module, Router) for module in model.modules()
        )
        self.max_tokens = min(self._query.tokenizer.max_tokens, self._document.tokenizer.max_tokens)
        self._packed: PackedBiEncoder | None = None
        self._model: nn.Module = model
        expected = self._expected()
        self.dimension: int = expected[0].shape[1]
        _check_similarity(model, expected)
        self._run_fastest(model, expected, config)

    def _expected(self) -> list[Embeddings]:
        """The embeddings of the probe, each text computed alone, for each of `_roles`."""
        try:
            return [
                np.concatenate([self._library_output([text], role).numpy() for text in self._probe(role)])
                for role in self._roles()
            ]
        except Exception as error:  # models fail in any way
            raise UnusableModel(f'its own library cannot run "{self.name}": {error!r}') from error

    def _roles(self) -> tuple[_Role, ...]:
        """Both if they are encoded differently, else one."""
        is_same = self._query.prompt == self._document.prompt and not self._tells_roles_apart
        return (self._document,) if is_same else (self._query, self._document)

    def _probe(self, role: _Role) -> list[TokenizedText]:
        texts = probe_texts(self.max_tokens)
        return role.tokenizer.tokenize(texts, is_query=role is self._query, prompt=role.prompt)

    def _run_fastest(
        self, model: SentenceTransformer, expected: Sequence[Embeddings], config: EngineConfig
    ) -> None:
        """Choose packed rows, or else the library, by what agrees with the library in float32.

        Raises:
            UnusableModel: neither agrees.
        """
        self._packed = _packed(model, self._document.tokenizer, config, self.model_id, self.max_tokens)
        if self._packed is not None:
            try:
                self._check(expected)
            # Modules behind the transformer may read what packed rows do not have.
            except (Disagreement, RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
                _log.warning("%s is not packed: %r", self.model_id, error)
                self._packed = None
        if self._packed is None:
            self._model = _placed(model, config)
            try:
                self._check(expected)
            except Disagreement as error:
                reason = f"{error}, or depend on the texts that share a batch"
                raise UnusableModel(f'cannot serve "{self.name}": {reason}') from error
        else:
            # An engine has its own copy of the transformer; this one is freed.
            self._model = nn.Module()
        self.engine = self._packed.engine_name if self._packed else "sentence-transformers"

    def _check(self, expected: Sequence[Embeddings]) -> None:
        for role, alone in zip(self._roles(), expected, strict=True):
            together = self._forward(self._probe(role), role)
            check_agreement(together, alone, self.dtype, are_vectors=True)

    @property
    def is_packed(self) -> bool:
        """Whether texts of different lengths share a batch without padding."""
        return self._packed is not None

    @classmethod
    def load(
        cls,
        directory: Path,
        name: str,
        config: EngineConfig = REFERENCE,
        max_tokens: int | None = None,
        prompts: Prompts | None = None,
    ) -> TorchBiEncoder:
        """Load a directory in the sentence-transformers format; code in it is never run.

        Args:
            directory: as `find_model` returns it.
            name: the requested name.
            config: device, precision and the engines to try. Modules after the transformer stay in float32.
            max_tokens: truncate texts to this if the model itself reads more.
            prompts: replace the model's own.

        Raises:
            UnusableModel: it is not a bi-encoder, its files contradict each other, or no engine computes what
                sentence-transformers computes.
        """
        model = read_bi_encoder(directory, name, config.cache_directory)
        feed_lstm(model.eval())
        return cls(model, name, directory, config, max_tokens, prompts)

    def describe(self) -> BiEncoderDescription | None:
        """The description with which `NativeBiEncoder` runs the model without torch; None if it cannot."""
        pooling = self._packed and self._packed.plain_pooling
        tokenizer = self._document.tokenizer
        if self.engine != NATIVE or self._tells_roles_apart or self._document.prompt_tokens or not pooling:
            return None
        if not isinstance(tokenizer, TransformerTokenizer):
            return None
        normalizes = self._packed is not None and self._packed.normalizes
        return BiEncoderDescription(
            tokenizer.describe(), pooling, normalizes, self._query.prompt, self._document.prompt
        )

    def tokenize(
        self, texts: Sequence[str], *, is_query: bool, truncation: Truncation | None = None
    ) -> list[TokenizedText]:
        """Prepend the role's prompt to each text and tokenize it."""
        role = self._query if is_query else self._document
        return role.tokenizer.tokenize(texts, is_query=is_query, prompt=role.prompt, truncation=truncation)

    def embed(self, batch: Sequence[TokenizedText]) -> Embeddings:
        """`outputs` with rows of length 1."""
        return normalise(self.outputs(batch))

    def outputs(self, batch: Sequence[TokenizedText]) -> Embeddings:
        """One forward pass, or two for a model that treats queries and documents differently.

        Returns:
            (count, dimension) float32, as long as the model makes them, in the order of the batch.

        Raises:
            ValueError: an embedding is not finite.
        """
        if self._tells_roles_apart:
            embeddings = self._outputs_by_role(batch)
        else:
            embeddings = self._forward(batch, self._query if batch[0].is_query else self._document)
        if not np.isfinite(embeddings).all():
            raise ValueError(f"{self.model_id} returned an embedding that is not finite")
        return embeddings

    def _outputs_by_role(self, batch: Sequence[TokenizedText]) -> Embeddings:
        positions: list[int] = []
        parts: list[Embeddings] = []
        for role, is_query in ((self._query, True), (self._document, False)):
            of_role = [position for position, text in enumerate(batch) if text.is_query == is_query]
            if of_role:
                positions += of_role
                parts.append(self._forward([batch[position] for position in of_role], role))
        embeddings = np.concatenate(parts)
        embeddings[positions] = embeddings.copy()
        return embeddings

    @torch.inference_mode()
    def _forward(self, batch: Sequence[TokenizedText], role: _Role) -> Embeddings:
        if self._packed:
            output = self._packed.embed(batch, role.prompt_tokens)
        else:
            output = self._library_output(batch, role)
        embeddings: Embeddings = output.float().cpu().numpy()  # (count, dimension)
        return embeddings

    @torch.inference_mode()
    def _library_output(self, batch: Sequence[TokenizedText], role: _Role) -> Tensor:
        """(count, dimension), as long as sentence-transformers makes them."""
        features = {
            name: value.to(self._device_of_inputs()) if isinstance(value, Tensor) else value
            for name, value in role.tokenizer.collate(batch).items()
        }
        if role.prompt_tokens:
            features["prompt_length"] = role.prompt_tokens
        output: Tensor = self._model(features, task=role.task)["sentence_embedding"]
        return output

    def _device_of_inputs(self) -> torch.device:
        return next((weight.device for weight in self._model.parameters()), torch.device("cpu"))


def _check_similarity(model: SentenceTransformer, embeddings: Sequence[Embeddings]) -> None:
    """Embeddings are compared by their cosine, which ranks like other similarities only at one length."""
    lengths = np.linalg.norm(np.concatenate(embeddings), axis=1)
    if model.similarity_fn_name in _UNBOUNDED_SIMILARITIES and not np.allclose(lengths, 1.0, atol=1e-3):
        raise UnusableModel(
            f'the model compares embeddings of different lengths by "{model.similarity_fn_name}"; '
            "only cosines are supported"
        )


def _packed(
    model: SentenceTransformer,
    tokenizer: InputTokenizer,
    config: EngineConfig,
    model_id: str,
    max_tokens: int,
) -> PackedBiEncoder | None:
    """The model with its transformer in an engine; None if it has no transformer that an engine can run."""
    first, *following = model.children()
    if not isinstance(first, Transformer) or not isinstance(first.model, PreTrainedModel):
        return None
    # An engine gives the last layer's states, neither the pooler's output nor earlier layers.
    if not gives_last_states(first, tokenizer):
        return None
    engine = start_engine(first.model, config, model_id, max_tokens)
    if engine is None:
        return None
    pad_id = first.tokenizer.pad_token_id or 0
    return PackedBiEncoder(engine, [module.to(config.device) for module in following], pad_id)


def _placed(model: SentenceTransformer, config: EngineConfig) -> SentenceTransformer:
    """Convert only the transformer: for the modules that follow, float32 costs almost nothing."""
    for module in model.modules():
        if isinstance(module, Transformer):
            module.to(getattr(torch, config.dtype))
            module.register_forward_hook(_to_float32)
    return model.to(config.device)


def _to_float32(module: nn.Module, _: tuple[Any, ...], features: dict[str, Any]) -> None:
    name = cast("Transformer", module).module_output_name
    features[name] = features[name].float()
    if "all_layer_embeddings" in features:
        features["all_layer_embeddings"] = tuple(
            states.float() for states in features["all_layer_embeddings"]
        )


def read_bi_encoder(
    directory: Path, name: str, cache_directory: Path = DEFAULT_CACHE_DIRECTORY
) -> SentenceTransformer:
    """Load a directory in the sentence-transformers format, or an adapter, on the CPU in float32.

    Args:
        directory: as `find_model` returns it.
        name: the requested name.
        cache_directory: as given to `find_model`.

    Raises:
        UnusableModel: it is not a bi-encoder, or its files contradict each other.
    """
    try:
        if is_adapter_directory(directory):
            base = find_model(adapter_base_name(directory), BI_ENCODER_ORGANISATION, cache_directory)
            return load_bi_encoder_directory(directory, base)
        model = SentenceTransformer(
            str(directory), device="cpu", local_files_only=True, model_kwargs=MODEL_OPTIONS
        )
        set_normalization(model, directory)
        return model
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise UnusableModel(f'cannot load "{name}" as a bi-encoder: {error}') from error


def feed_lstm(model: nn.Module) -> None:
    """Let an LSTM follow a transformer: it needs the lengths of texts, which only word embeddings provide.

    Training and serving both need this.
    """
    for module in model.modules():
        if isinstance(module, LSTM):
            module.register_forward_pre_hook(_add_sentence_lengths)


def _add_sentence_lengths(module: nn.Module, arguments: tuple[dict[str, Tensor]]) -> None:
    features = arguments[0]
    mask = features["attention_mask"]
    features["sentence_lengths"] = mask.sum(dim=1)
    # An LSTM's output is as wide as the longest text, not as the padded batch, and at least 1 wide.
    features["attention_mask"] = mask[:, : max(1, int(features["sentence_lengths"].max()))]


def _role(model: SentenceTransformer, task: str, prompt: str, max_tokens: int | None) -> _Role:
    tokenizer = input_tokenizer(_first_module(model, task), max_tokens, task=task)
    pools_prompt = all(module.include_prompt for module in model.modules() if isinstance(module, Pooling))
    prompt_tokens = 0 if pools_prompt or not prompt else tokenizer.count_prompt_tokens(prompt)
    return _Role(task, tokenizer, prompt, prompt_tokens)


def _first_module(model: SentenceTransformer, task: str) -> nn.Module:
    first: nn.Module = model[0]
    if not isinstance(first, Router):
        return first
    route = task if task in first.sub_modules else first.default_route
    if route is None:
        raise UnusableModel(f'the model has no route for the task "{task}"')
    return next(first.sub_modules[route].children())
