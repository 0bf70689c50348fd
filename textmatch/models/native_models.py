"""Models that need no torch: read from the cache in a fraction of the time that torch takes to import.

What the native engine runs, and what ends with a plain pooling or a small head, is described in the cache
when it is first loaded, beside the weights of its kernel. Files are named by the model's id, which holds a
hash of its own files, so that a changed model is never taken for the one in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from textmatch.models.calibration import Calibration, Scores, calibrated
from textmatch.models.embedding_scorers import CosineScorer, PairClassifier
from textmatch.models.fast_tokenizer import Pair, RustTokenizer, TokenizedText
from textmatch.models.model_cache import read_cache, write_cache
from textmatch.models.model_resolver import model_id
from textmatch.models.native.kernel import NAME, Kernel, States, weights_path
from textmatch.vectors import Embeddings, normalise

# Counted up when what is described changes.
_FORM = 1


@dataclass(frozen=True)
class TokenizerDescription:
    """A Rust tokenizer as JSON, and how many tokens the model itself reads."""

    content: str
    truncation_side: str
    max_tokens: int

    def make(self, max_tokens: int | None) -> RustTokenizer:
        """Cut texts shorter if asked to."""
        limit = min(self.max_tokens, max_tokens or self.max_tokens)
        return RustTokenizer(Tokenizer.from_str(self.content), limit, self.truncation_side)


@dataclass(frozen=True)
class BiEncoderDescription:
    """What surrounds the kernel in a bi-encoder; `pooling` is "mean" or "cls"."""

    tokenizer: TokenizerDescription
    pooling: str
    query_prompt: str
    document_prompt: str


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
class CrossEncoderDescription:
    """What surrounds the kernel in a cross-encoder, but for the layers of its head.

    `score_range` is the least and the greatest value that stands for a score; without one, values are logits.
    """

    tokenizer: TokenizerDescription
    prompt: str
    activations: tuple[str, ...]
    score_range: tuple[float, float] | None


class _Transformer:
    """A kernel over texts one after another."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def run(self, batch: Sequence[TokenizedText]) -> tuple[States, NDArray[np.int64], NDArray[np.int64]]:
        """(tokens, hidden) float32 for all texts, where each text begins, and its length."""
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


class _Prepared:
    """What all models in the kernel tell about themselves."""

    device = "cpu"
    dtype = "bfloat16"
    engine = NAME
    is_packed = True


class PreparedBiEncoder(_Prepared):
    """Does what textmatch.models.bi_encoder does."""

    def __init__(
        self,
        directory: Path,
        name: str,
        identity: str,
        kernel: Kernel,
        description: BiEncoderDescription,
        *,
        max_tokens: int | None,
    ) -> None:
        self.name = name
        self.model_id = identity
        self.cosine = CosineScorer(Calibration.load(directory))
        self.pair_classifier = PairClassifier.load(directory)
        self.dimension = kernel.shape.hidden
        self._transformer = _Transformer(kernel)
        self._tokenizer = description.tokenizer.make(max_tokens)
        self._description = description
        self.max_tokens = self._tokenizer.max_tokens

    @classmethod
    def load(
        cls, directory: Path, name: str, cache_directory: Path, *, threads: int, max_tokens: int | None
    ) -> PreparedBiEncoder:
        """One that was described by `keep_bi_encoder`.

        Raises:
            UnreadableCache: it was not, or is no bi-encoder.
            KernelMissing: there is no kernel.
        """
        identity = model_id(name, directory)
        content, _ = _read(_path(cache_directory, identity, "bi-encoder"))
        description = BiEncoderDescription(**content)
        kernel = Kernel.load(weights_path(cache_directory, identity), threads)
        return cls(directory, name, identity, kernel, description, max_tokens=max_tokens)

    def tokenize(self, texts: Sequence[str], *, is_query: bool) -> list[TokenizedText]:
        """Put the role's prompt before each text and turn it into tokens."""
        prompt = self._description.query_prompt if is_query else self._description.document_prompt
        prompted = [prompt + text for text in texts] if prompt else texts
        return self._tokenizer.tokenize(prompted, is_query=is_query)

    def embed(self, batch: Sequence[TokenizedText]) -> Embeddings:
        """(count, dimension) float32, rows of length 1, in the order of the batch.

        Raises:
            ValueError: an embedding is not finite.
        """
        states, starts, lengths = self._transformer.run(batch)
        if self._description.pooling == "cls":
            pooled = states[starts]  # (count, hidden)
        else:
            pooled = np.add.reduceat(states, starts, axis=0)  # (count, hidden)
            pooled /= lengths[:, None]
        if not np.isfinite(pooled).all():
            raise ValueError(f"{self.model_id} returned an embedding that is not finite")
        return normalise(pooled)


class PreparedCrossEncoder(_Prepared):
    """Does what textmatch.models.cross_encoder does."""

    def __init__(
        self,
        directory: Path,
        name: str,
        identity: str,
        kernel: Kernel,
        description: CrossEncoderDescription,
        head: Sequence[Dense],
        *,
        max_tokens: int | None,
    ) -> None:
        self.name = name
        self.model_id = identity
        self._calibration = Calibration.load(directory)
        self._transformer = _Transformer(kernel)
        self._tokenizer = description.tokenizer.make(max_tokens)
        self._description = description
        self._head = head
        self.max_tokens = self._tokenizer.max_tokens

    @classmethod
    def load(
        cls, directory: Path, name: str, cache_directory: Path, *, threads: int, max_tokens: int | None
    ) -> PreparedCrossEncoder:
        """One that was described by `keep_cross_encoder`.

        Raises:
            UnreadableCache: it was not, or is no cross-encoder.
            KernelMissing: there is no kernel.
        """
        identity = model_id(name, directory)
        content, arrays = _read(_path(cache_directory, identity, "cross-encoder"))
        description = CrossEncoderDescription(**content)
        head = [
            Dense(arrays[f"{number}.weight"], arrays[f"{number}.bias"], activation)
            for number, activation in enumerate(description.activations)
        ]
        kernel = Kernel.load(weights_path(cache_directory, identity), threads)
        return cls(directory, name, identity, kernel, description, head, max_tokens=max_tokens)

    def tokenize_pairs(self, pairs: Sequence[Pair]) -> list[TokenizedText]:
        """Tokens of each pair; if it is too long, the longer text is cut first."""
        prompt = self._description.prompt
        prompted = [(prompt + first, second) for first, second in pairs] if prompt else pairs
        return self._tokenizer.tokenize(prompted, is_query=False)

    def score(self, batch: Sequence[TokenizedText]) -> tuple[Scores, Scores]:
        """One forward pass.

        Returns:
            Scores in 0..1, calibrated where the model has a calibration, and what the model said before: both
            (count,) float32, in the order of the batch.

        Raises:
            ValueError: a score is not finite.
        """
        states, starts, _ = self._transformer.run(batch)
        outputs = states[starts]  # (count, hidden)
        for layer in self._head:
            outputs = layer(outputs)
        raw: Scores = outputs[:, 0]
        if not np.isfinite(raw).all():
            raise ValueError(f"{self.model_id} returned a score that is not finite")
        return calibrated(np.clip(self._to_score(raw), 0.0, 1.0), self._calibration), raw

    def _to_score(self, raw: Scores) -> Scores:
        if self._description.score_range is None:
            scores: Scores = np.exp(-np.logaddexp(0.0, -raw))
            return scores
        lowest, highest = self._description.score_range
        return (raw - np.float32(lowest)) / np.float32(highest - lowest)


def keep_bi_encoder(cache_directory: Path, identity: str, description: BiEncoderDescription) -> None:
    """Describe a bi-encoder for `PreparedBiEncoder.load`; its engine has kept the weights."""
    write_cache(_path(cache_directory, identity, "bi-encoder"), asdict(description), {})


def keep_cross_encoder(
    cache_directory: Path, identity: str, description: CrossEncoderDescription, head: Sequence[Dense]
) -> None:
    """Describe a cross-encoder for `PreparedCrossEncoder.load`; its engine has kept the weights."""
    arrays = {f"{number}.weight": layer.weight for number, layer in enumerate(head)}
    arrays |= {f"{number}.bias": layer.bias for number, layer in enumerate(head)}
    write_cache(_path(cache_directory, identity, "cross-encoder"), asdict(description), arrays)


def _path(cache_directory: Path, identity: str, kind: str) -> Path:
    return cache_directory / f"{identity}-{kind}-{_FORM}.safetensors"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The fields of a description, its tokenizer's among them, and the arrays."""
    content, arrays = read_cache(path)
    return content | {"tokenizer": TokenizerDescription(**content["tokenizer"])}, arrays
