"""Systems to evaluate: models by directory or name, run as in the encoder, and a baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from textmatch.models.bi_encoder import TorchBiEncoder
from textmatch.models.calibration import (
    CLASSIFIER_DIRECTORY,
    Calibration,
    CosineScorer,
    PairClassifier,
    Scores,
)
from textmatch.models.cross_encoder import TorchCrossEncoder
from textmatch.models.engines import AUTO, EngineConfig, resolve_device
from textmatch.models.fast_tokenizer import Pair, TokenizedText
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    UnusableModel,
    find_model,
    is_adapter_directory,
    is_cross_encoder_adapter,
)
from textmatch.types import Scorer
from textmatch.vectors import Embeddings

CHAR_TFIDF = "char-tfidf"
_BATCH_TOKENS = 4096
_MODEL_CONFIG = "config_sentence_transformers.json"
_MODULES = "modules.json"
_TRANSFORMER_CONFIG = "config.json"


@dataclass(frozen=True)
class ScoredPairs:
    """Scores by one scorer of a model, (count,); `uncalibrated` is None if it has no calibration."""

    scorer: Scorer
    scores: Scores
    uncalibrated: Scores | None = None


class System(Protocol):
    """A model or baseline that scores pairs."""

    @property
    def name(self) -> str: ...
    @property
    def model_id(self) -> str: ...

    def score(self, pairs: Sequence[Pair]) -> list[ScoredPairs]:
        """The scores of each of its scorers, in the order of the pairs."""
        ...


@dataclass(frozen=True)
class _LoadedModel:
    model: TorchCrossEncoder | TorchBiEncoder
    directory: Path

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def model_id(self) -> str:
        return self.model.model_id


@dataclass(frozen=True)
class CrossEncoderSystem(_LoadedModel):
    """A cross-encoder."""

    model: TorchCrossEncoder

    def score(self, pairs: Sequence[Pair]) -> list[ScoredPairs]:
        def forward(batch: Sequence[TokenizedText]) -> NDArray[np.float32]:
            return np.column_stack(self.model.score(batch))

        rows = run_in_batches(self.model.tokenize_pairs(pairs), forward)  # (count, 2)
        scores, uncalibrated = rows[:, 0], self.model.uncalibrated(np.ascontiguousarray(rows[:, 1]))
        is_calibrated = Calibration.load(self.directory) is not None
        return [ScoredPairs(Scorer.CROSS_ENCODER, scores, uncalibrated if is_calibrated else None)]

    def calibration_directory(self, scorer: Scorer) -> Path:
        """The directory that holds the calibration of its scorer."""
        return self.directory


@dataclass(frozen=True)
class BiEncoderSystem(_LoadedModel):
    """A bi-encoder: its cosine, and its pair classifier if it has one."""

    model: TorchBiEncoder

    def score(self, pairs: Sequence[Pair]) -> list[ScoredPairs]:
        first = self.embed([pair[0] for pair in pairs], is_query=True)
        second = self.embed([pair[1] for pair in pairs], is_query=False)
        found = [_score(Scorer.COSINE, self.model.cosine, first, second)]
        if self.model.pair_classifier is not None:
            found.insert(0, _score(Scorer.PAIR_CLASSIFIER, self.model.pair_classifier, first, second))
        return found

    def embed(self, texts: Sequence[str], *, is_query: bool) -> Embeddings:
        """(count, dimension), rows of length 1. Repeated texts are embedded once."""
        position = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        rows = run_in_batches(self.model.tokenize(list(position), is_query=is_query), self.model.embed)
        return rows[[position[text] for text in texts]]

    def calibration_directory(self, scorer: Scorer) -> Path:
        """The directory that holds the calibration of a scorer."""
        return self.directory / CLASSIFIER_DIRECTORY if scorer == Scorer.PAIR_CLASSIFIER else self.directory


@dataclass(frozen=True)
class CharacterTfidf:
    """The baseline: cosine of TF-IDF vectors of character unigrams and bigrams.

    Its weights are fitted on the evaluated texts, which favours it slightly.
    """

    name: str = CHAR_TFIDF
    model_id: str = CHAR_TFIDF

    def score(self, pairs: Sequence[Pair]) -> list[ScoredPairs]:
        vectors = self.vectorizer().fit_transform([text for pair in pairs for text in pair])  # (2 x count, n)
        cosines = np.asarray(vectors[::2].multiply(vectors[1::2]).sum(axis=1)).ravel()
        return [ScoredPairs(Scorer.COSINE, np.clip(cosines, 0.0, 1.0).astype(np.float32))]

    def vectorizer(self) -> TfidfVectorizer:
        """Maps texts to sparse rows of length 1."""
        return TfidfVectorizer(analyzer="char", ngram_range=(1, 2))


ModelSystem = CrossEncoderSystem | BiEncoderSystem


def load_system(name: str, device: str = AUTO) -> System:
    """The baseline for `char-tfidf`, else the model that `load_model_system` finds."""
    return CharacterTfidf() if name == CHAR_TFIDF else load_model_system(name, device)


def load_model_system(name: str, device: str = AUTO) -> ModelSystem:
    """A model in float32: a directory, the name of a bundled model, or a name on the Hugging Face hub.

    Raises:
        ModelNotFound: there is no such model.
        UnusableModel: it cannot be loaded.
        UnusableDevice: there is no such device.
    """
    directory = find_model(name, BI_ENCODER_ORGANISATION)
    config = EngineConfig(device=resolve_device(device))
    if is_cross_encoder(directory):
        return CrossEncoderSystem(TorchCrossEncoder.load(directory, name, config), directory)
    return BiEncoderSystem(TorchBiEncoder.load(directory, name, config), directory)


def is_cross_encoder(directory: Path) -> bool:
    """Whether a model reads pairs, according to its files."""
    if is_adapter_directory(directory):
        return is_cross_encoder_adapter(directory)
    model_type = _read_config(directory / _MODEL_CONFIG).get("model_type")
    if model_type or is_sentence_transformer(directory):
        return bool(model_type == "CrossEncoder")
    architectures = _read_config(directory / _TRANSFORMER_CONFIG).get("architectures") or []
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def is_sentence_transformer(directory: Path) -> bool:
    """Whether it is a sentence-transformers model, or an adapter of one, and not a bare transformer."""
    return (directory / _MODULES).is_file() or is_adapter_directory(directory)


def run_in_batches(
    texts: Sequence[TokenizedText], forward: Callable[[Sequence[TokenizedText]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Run a model on all texts, batched by length: (count, width) in the order of the texts.

    Raises:
        UnusableModel: the model returned values that are not finite.
    """
    order = sorted(range(len(texts)), key=lambda position: -texts[position].token_count)
    parts, start = [], 0
    while start < len(order):
        size = max(1, _BATCH_TOKENS // max(1, texts[order[start]].token_count))
        batch = [texts[position] for position in order[start : start + size]]
        try:
            parts.append(forward(batch))
        except ValueError as error:
            raise UnusableModel(str(error)) from error
        start += size
    rows = np.concatenate(parts)
    rows[order] = rows.copy()
    return rows


def _read_config(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _score(
    name: Scorer, scorer: CosineScorer | PairClassifier, first: Embeddings, second: Embeddings
) -> ScoredPairs:
    scores, _ = scorer.score(first, second)
    if scorer.calibration is None:
        return ScoredPairs(name, scores)
    uncalibrated, _ = replace(scorer, calibration=None).score(first, second)
    return ScoredPairs(name, scores, uncalibrated)
