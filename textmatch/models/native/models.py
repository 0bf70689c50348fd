"""Models that run in the native kernel without torch, read from the cache.

Importing torch takes seconds, and a cached model does not need it. When torch loads a model, the native
engine writes the kernel's weights into the cache, and the model's `describe` returns the rest: tokenizer,
prompts and a plain pooling or a small head. Files are named by the model's id, which contains a hash of the
model's files. A changed model therefore never uses the cache of the old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmatch.models.calibration import (
    Calibration,
    CosineScorer,
    PairClassifier,
    Scores,
    calibrated,
    class_scores,
)
from textmatch.models.engines import NATIVE, EngineConfig
from textmatch.models.fast_tokenizer import Pair, TokenizedText, TokenizerDescription
from textmatch.models.model_resolver import model_id
from textmatch.models.native.kernel import Kernel, States, read_cache, weights_path, write_cache
from textmatch.models.prompts import Prompts
from textmatch.types import Truncation
from textmatch.vectors import Embeddings, normalise

# Incremented when the format of the descriptions changes.
_FORM = 4
_BI_ENCODER, _CROSS_ENCODER = "bi-encoder", "cross-encoder"


@dataclass(frozen=True)
class Dense:
    """A layer of a head: `weight` is (outputs, inputs), `activation` "tanh", "relu" or ""."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: str

    def __call__(self, inputs: States) -> States:
        """(count, inputs) -> (count, outputs)."""
        outputs: States = inputs @ self.weight.T + self.bias
        if self.activation == "tanh":
            return np.tanh(outputs)
        return np.maximum(outputs, 0.0) if self.activation == "relu" else outputs


@dataclass(frozen=True)
class BiEncoderDescription:
    """The parts of a bi-encoder outside the kernel.

    `pooling` is "mean" or "cls". `normalizes` is whether the model's own embeddings have length 1.
    """

    tokenizer: TokenizerDescription
    pooling: str
    normalizes: bool
    query_prompt: str
    document_prompt: str

    def save(self, cache_directory: Path, model_id: str) -> None:
        """Write it into the cache for `NativeBiEncoder.load`."""
        write_cache(_path(cache_directory, model_id, _BI_ENCODER), asdict(self), {})


@dataclass(frozen=True)
class CrossEncoderDescription:
    """The parts of a cross-encoder outside the kernel.

    `head` runs on the state of the first token. `score_range` is the lowest and highest output; without it,
    outputs are logits. `labels` are the names of the classes, if there are several.
    """

    tokenizer: TokenizerDescription
    prompt: str
    head: tuple[Dense, ...]
    score_range: tuple[float, float] | None
    labels: tuple[str, ...] = ()

    def save(self, cache_directory: Path, model_id: str) -> None:
        """Write it into the cache for `NativeCrossEncoder.load`."""
        content = {
            "tokenizer": asdict(self.tokenizer),
            "prompt": self.prompt,
            "activations": [layer.activation for layer in self.head],
            "score_range": self.score_range,
            "labels": self.labels,
        }
        arrays = {f"{number}.weight": layer.weight for number, layer in enumerate(self.head)}
        arrays |= {f"{number}.bias": layer.bias for number, layer in enumerate(self.head)}
        write_cache(_path(cache_directory, model_id, _CROSS_ENCODER), content, arrays)


class _NativeModel:
    """A kernel with a tokenizer."""

    device = "cpu"
    dtype = "bfloat16"
    engine = NATIVE
    is_packed = True

    def __init__(
        self,
        name: str,
        model_id: str,
        config: EngineConfig,
        tokenizer: dict[str, Any],
        max_tokens: int | None,
    ) -> None:
        self.name = name
        self.model_id = model_id
        self._tokenizer = TokenizerDescription(**tokenizer).make(max_tokens)
        self.max_tokens = self._tokenizer.max_tokens
        self._kernel = Kernel.load(weights_path(config.cache_directory, model_id), config.threads)

    def _run(self, batch: Sequence[TokenizedText]) -> tuple[States, NDArray[np.int64], NDArray[np.int64]]:
        """(tokens, hidden) float32 for all texts, the place of each text's first token, and its length."""
        lengths = np.array([text.token_count for text in batch], dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(lengths[:-1])))
        ids = np.concatenate([np.array(text.ids, dtype=np.int64) for text in batch])
        type_ids = np.zeros_like(ids)
        for text, start in zip(batch, starts.tolist(), strict=True):
            if text.type_ids is not None:
                type_ids[start : start + text.token_count] = text.type_ids
        states = np.empty((len(ids), self._kernel.shape.hidden), dtype=np.float32)
        self._kernel.run(ids, type_ids, starts, lengths, states)
        return states, starts, lengths


class NativeBiEncoder(_NativeModel):
    """A bi-encoder in the kernel, with the interface of `TorchBiEncoder`."""

    def __init__(
        self,
        directory: Path,
        name: str,
        config: EngineConfig,
        max_tokens: int | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        """Read a bi-encoder that `BiEncoderDescription.save` described.

        Args:
            directory: the model's files.
            name: the requested name.
            config: threads and cache.
            max_tokens: truncate texts to this if the model itself reads more.
            prompts: replace the model's own.

        Raises:
            UnreadableCache: it is not in the cache.
            KernelMissing: the kernel is not compiled or cannot run here.
        """
        identity = model_id(name, directory, config.cache_directory, prompts)
        content, _ = read_cache(_path(config.cache_directory, identity, _BI_ENCODER))
        super().__init__(name, identity, config, content["tokenizer"], max_tokens)
        self.cosine = CosineScorer(Calibration.load(directory))
        self.pair_classifier = PairClassifier.load(directory)
        self.dimension = self._kernel.shape.hidden
        self._pooling: str = content["pooling"]
        self._normalizes: bool = content["normalizes"]
        self._query_prompt: str = content["query_prompt"]
        self._document_prompt: str = content["document_prompt"]

    def tokenize(
        self, texts: Sequence[str], *, is_query: bool, truncation: Truncation | None = None
    ) -> list[TokenizedText]:
        """Prepend the role's prompt to each text and tokenize it."""
        prompt = self._query_prompt if is_query else self._document_prompt
        return self._tokenizer.tokenize(texts, is_query=is_query, prompt=prompt, truncation=truncation)

    def embed(self, batch: Sequence[TokenizedText]) -> Embeddings:
        """`outputs` with rows of length 1."""
        return normalise(self.outputs(batch))

    def outputs(self, batch: Sequence[TokenizedText]) -> Embeddings:
        """One forward pass.

        Returns:
            (count, dimension) float32, as long as the model makes them, in the order of the batch.

        Raises:
            ValueError: an embedding is not finite.
        """
        states, starts, lengths = self._run(batch)
        if self._pooling == "cls":
            pooled = states[starts]  # (count, hidden)
        else:
            pooled = np.add.reduceat(states, starts, axis=0)  # (count, hidden)
            pooled /= lengths[:, None]
        if not np.isfinite(pooled).all():
            raise ValueError(f"{self.model_id} returned an embedding that is not finite")
        return normalise(pooled) if self._normalizes else pooled


class NativeCrossEncoder(_NativeModel):
    """A cross-encoder in the kernel, with the interface of `TorchCrossEncoder`."""

    def __init__(
        self, directory: Path, name: str, config: EngineConfig, max_tokens: int | None = None
    ) -> None:
        """Read a cross-encoder that `CrossEncoderDescription.save` described; see `NativeBiEncoder`."""
        identity = model_id(name, directory, config.cache_directory)
        content, arrays = read_cache(_path(config.cache_directory, identity, _CROSS_ENCODER))
        super().__init__(name, identity, config, content["tokenizer"], max_tokens)
        self._calibration = Calibration.load(directory)
        self._prompt: str = content["prompt"]
        self._score_range: tuple[float, float] | None = content["score_range"]
        self.labels: tuple[str, ...] = tuple(content["labels"])
        self._head = [
            Dense(arrays[f"{number}.weight"], arrays[f"{number}.bias"], activation)
            for number, activation in enumerate(content["activations"])
        ]

    def tokenize_pairs(
        self, pairs: Sequence[Pair], *, truncation: Truncation | None = None
    ) -> list[TokenizedText]:
        """Tokenize each pair; in a pair that is too long, the longer text is truncated first."""
        return self._tokenizer.tokenize(pairs, is_query=False, prompt=self._prompt, truncation=truncation)

    def score(self, batch: Sequence[TokenizedText]) -> tuple[Scores, Scores]:
        """The scores and raw scores of `outputs`, both (count,)."""
        rows = self.outputs(batch)
        return rows[:, 0], rows[:, 1]

    def outputs(self, batch: Sequence[TokenizedText]) -> Scores:
        """One forward pass.

        Returns:
            (count, 2 + labels) float32, in the order of the batch: the score in 0..1, calibrated if the model
            has a calibration; the raw score; the probability of each class, if there are several.

        Raises:
            ValueError: a score is not finite.
        """
        states, starts, _ = self._run(batch)
        outputs = states[starts]  # (count, hidden)
        for layer in self._head:
            outputs = layer(outputs)
        if not np.isfinite(outputs).all():
            raise ValueError(f"{self.model_id} returned a score that is not finite")
        raw, probabilities = class_scores(outputs, self.labels)
        scores = calibrated(np.clip(self._to_score(raw), 0.0, 1.0), self._calibration)
        return np.column_stack((scores, raw, probabilities))

    def _to_score(self, raw: Scores) -> Scores:
        if self._score_range is None:
            scores: Scores = np.exp(-np.logaddexp(0.0, -raw))
            return scores
        lowest, highest = self._score_range
        return (raw - np.float32(lowest)) / np.float32(highest - lowest)


def _path(cache_directory: Path, model_id: str, kind: str) -> Path:
    return cache_directory / f"{model_id}-{kind}-{_FORM}.safetensors"
