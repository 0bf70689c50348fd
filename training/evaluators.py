"""Evaluators that the trainers call during training: correlation with gold scores, or class accuracy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from textmatch.models.calibration import PairClassifier
from training.examples import ClassPair, ScoredPair
from training.labels import ScoreRange

SPEARMAN = "spearman"
ACCURACY = "accuracy"
_BATCH_SIZE = 64


class PairEvaluator(BaseEvaluator, ABC):
    """Evaluates a model on labelled pairs."""

    @abstractmethod
    def measure(self, model: Any) -> dict[str, float]:
        """Values by metric name."""

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        return self.measure(model)


class CosineEvaluator(PairEvaluator):
    """Spearman correlation of a bi-encoder's cosine with the gold score.

    `dimensions`: it is also measured with embeddings cut to these lengths.
    """

    def __init__(self, pairs: Sequence[ScoredPair], dimensions: Sequence[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dimensions = dimensions
        self._pairs = pairs
        self._gold = np.array([pair.score for pair in pairs])

    def measure(self, model: SentenceTransformer) -> dict[str, float]:
        first, second = _embed_pairs(model, self._pairs)
        measured = {SPEARMAN: _correlation(spearmanr, _cosines(first, second), self._gold)}
        for length in self._dimensions:
            cosines = _cosines(first[:, :length], second[:, :length])
            measured[f"{SPEARMAN} of {length}"] = _correlation(spearmanr, cosines, self._gold)
        return measured


class ClassEvaluator(PairEvaluator):
    """Accuracy of the classifier that a softmax loss trains over a bi-encoder's embeddings."""

    def __init__(
        self, pairs: Sequence[ClassPair], classes: Sequence[str], classifier: torch.nn.Linear
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pairs = pairs
        self._gold = np.array([classes.index(pair.label) for pair in pairs])
        self._classifier = classifier

    def measure(self, model: SentenceTransformer) -> dict[str, float]:
        first, second = _embed_pairs(model, self._pairs)
        logits = pair_classifier(self._classifier, ()).logits(first, second)
        return {ACCURACY: float((logits.argmax(axis=1) == self._gold).mean())}


class ScoreEvaluator(PairEvaluator):
    """Correlations and mean squared error of a cross-encoder's scores with gold scores, both in 0..1."""

    def __init__(self, pairs: Sequence[ScoredPair], score_range: ScoreRange) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pairs = [(pair.first, pair.second) for pair in pairs]
        self._gold = np.array([pair.score for pair in pairs])
        self._range = score_range

    def measure(self, model: CrossEncoder) -> dict[str, float]:
        predicted = model.predict(self._pairs, batch_size=_BATCH_SIZE, show_progress_bar=False)
        scores = self._range.normalise(np.asarray(predicted, dtype=np.float64))
        return {
            SPEARMAN: _correlation(spearmanr, scores, self._gold),
            "pearson": _correlation(pearsonr, scores, self._gold),
            "mse": float(np.mean((scores - self._gold) ** 2)),
        }


def pair_classifier(classifier: torch.nn.Linear, class_scores: Sequence[float]) -> PairClassifier:
    """The linear layer of a softmax loss in the form that the encoder loads."""
    return PairClassifier(
        weight=classifier.weight.detach().float().cpu().numpy(),
        bias=classifier.bias.detach().float().cpu().numpy(),
        class_scores=tuple(class_scores),
    )


def embed(encode: Callable[..., Any], sentences: Sequence[str]) -> NDArray[np.float32]:
    """L2-normalised embeddings by an encode method of sentence-transformers: (sentence, dimension)."""
    embeddings = encode(
        list(sentences), batch_size=_BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False
    )
    return np.asarray(embeddings, dtype=np.float32)


def _embed_pairs(
    model: SentenceTransformer, pairs: Sequence[ScoredPair] | Sequence[ClassPair]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """First sentences as queries, second ones as documents: (pair, dimension) each."""
    first = embed(model.encode_query, [pair.first for pair in pairs])
    return first, embed(model.encode_document, [pair.second for pair in pairs])


def _cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine of each row of `first` with that of `second`: (pair,)."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines: NDArray[np.float32] = (first * second).sum(axis=1) / np.maximum(lengths, 1e-12)
    return cosines


def _correlation(correlate: Any, scores: NDArray[Any], gold: NDArray[Any]) -> float:
    """0 where either side is constant and a correlation is not defined."""
    is_defined = np.ptp(scores) > 0 and np.ptp(gold) > 0
    return float(correlate(scores, gold).statistic) if is_defined else 0.0
