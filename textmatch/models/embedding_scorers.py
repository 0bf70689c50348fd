"""A classifier over two embeddings (u, v, |u-v|), and how its classes become one score.

The cosine of two embeddings as a score.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from textmatch.models.calibration import Calibration, Scores, calibrated
from textmatch.models.model_resolver import UnusableModel
from textmatch.vectors import Embeddings

DIRECTORY = "pair_classifier"
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class PairClassifier:
    """A linear layer over (u, v, |u-v|), where u and v have length 1.

    `weight` is (classes, 3 x dimension), `bias` is (classes,). `class_scores` says what each class is worth,
    0..1: for contradiction, neutral, entailment it is (0, 0.5, 1). Its calibration, if it has one, is kept
    beside its weights.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    class_scores: tuple[float, ...]
    calibration: Calibration | None = None

    @classmethod
    def load(cls, model_directory: Path) -> PairClassifier | None:
        """The classifier that came with a bi-encoder, if one did.

        Raises:
            UnusableModel: its files contradict each other.
        """
        directory = model_directory / DIRECTORY
        if not directory.is_dir():
            return None
        weights = load_file(directory / _WEIGHTS)
        class_scores = tuple(json.loads((directory / _CONFIG).read_text())["class_scores"])
        class_count = weights["weight"].shape[0]
        if len(class_scores) != class_count or weights["bias"].shape != (class_count,):
            raise UnusableModel(
                f'"{directory}": {class_count} classes in "weight", {len(class_scores)} in "class_scores", '
                f'{weights["bias"].size} in "bias"'
            )
        return cls(
            weights["weight"].astype(np.float32),
            weights["bias"].astype(np.float32),
            class_scores,
            Calibration.load(directory),
        )

    def save(self, model_directory: Path) -> None:
        """Write it into a bi-encoder's directory."""
        directory = model_directory / DIRECTORY
        directory.mkdir(exist_ok=True)
        save_file({"weight": self.weight, "bias": self.bias}, directory / _WEIGHTS)
        (directory / _CONFIG).write_text(json.dumps({"class_scores": self.class_scores}, indent=2) + "\n")

    def logits(self, first: Embeddings, second: Embeddings) -> Scores:
        """(count, classes): what the layer says of pairs of rows, which are given as in `score`."""
        first = np.broadcast_to(first, second.shape)
        features = np.concatenate((first, second, np.abs(first - second)), axis=1)  # (count, 3 x dimension)
        logits: Scores = features @ self.weight.T + self.bias
        return logits

    def score(self, first: Embeddings, second: Embeddings) -> tuple[Scores, Scores]:
        """Score pairs of rows.

        Args:
            first: (count, dimension), rows of length 1; or (1, dimension) for one against all.
            second: (count, dimension), rows of length 1.

        Returns:
            Scores in 0..1: each class's probability times what it is worth, calibrated; and the same sum over
            the logits. Both are (count,).
        """
        logits = self.logits(first, second)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        worth = np.asarray(self.class_scores, dtype=np.float32)
        scores: Scores = np.clip(probabilities @ worth, 0.0, 1.0)
        raw: Scores = logits @ worth
        return calibrated(scores, self.calibration), raw


@dataclass(frozen=True)
class CosineScorer:
    """The cosine cut to 0..1, calibrated where the bi-encoder has a calibration."""

    calibration: Calibration | None = None

    def score(self, first: Embeddings, second: Embeddings) -> tuple[Scores, Scores]:
        """Score pairs of rows.

        Args:
            first: (count, dimension), rows of length 1; or (1, dimension) for one against all.
            second: (count, dimension), rows of length 1.

        Returns:
            Scores in 0..1, and the cosines in -1..1: both (count,).
        """
        cosines: Scores = np.clip((first * second).sum(axis=1), -1.0, 1.0)
        return calibrated(np.clip(cosines, 0.0, 1.0), self.calibration), cosines
