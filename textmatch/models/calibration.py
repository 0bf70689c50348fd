"""Scores of two embeddings, and the calibration of scores: of the pairs that score 0.8, 80 % mean the same.

A calibration is a strictly increasing map from scores to scores. Training fits it on labelled pairs and
writes it into the model's directory. It never changes the order of scores. Does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from textmatch.models.model_resolver import UnusableModel
from textmatch.vectors import Embeddings

FILE_NAME = "calibration.json"
VERSION = 1
MAX_KNOTS = 10_000
CLASSIFIER_DIRECTORY = "pair_classifier"
_CLASSIFIER_CONFIG = "config.json"
_CLASSIFIER_WEIGHTS = "model.safetensors"
_MAX_BYTES = 1_000_000
_ENTAILMENT = "entailment"

Scores = NDArray[np.float32]
# float32 distinguishes this from 0, and 1 minus this from 1. The logits of 0 and 1 are infinite.
_LEAST_SCORE = 1e-7


@dataclass(frozen=True)
class Logistic:
    """`sigmoid(slope * logit(score) + intercept)`; slope 1 and intercept 0 change nothing."""

    slope: float
    intercept: float
    name: ClassVar[str] = "logistic"

    def __post_init__(self) -> None:
        if not (np.isfinite([self.slope, self.intercept]).all() and self.slope > 0):
            raise ValueError("slope and intercept must be finite numbers, and slope above 0")

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(count,) in 0..1 to (count,) in 0..1."""
        logits = self.slope * logit(scores) + self.intercept
        return np.exp(-np.logaddexp(0.0, -logits))


@dataclass(frozen=True)
class Isotonic:
    """Linear interpolation between knots: `scores` from 0 to 1, `values` in 0..1, both increasing."""

    scores: tuple[float, ...]
    values: tuple[float, ...]
    name: ClassVar[str] = "isotonic"

    def __post_init__(self) -> None:
        if not 2 <= len(self.scores) == len(self.values) <= MAX_KNOTS:
            raise ValueError(f"it needs as many scores as values, 2 to {MAX_KNOTS}")
        for name, column in (("scores", self.scores), ("values", self.values)):
            # Negated, since NaN compares false with everything and must be refused too.
            if not (np.diff(column) > 0).all() or not 0 <= column[0] < column[-1] <= 1:
                raise ValueError(f'"{name}" must rise from knot to knot within 0..1')
        if (self.scores[0], self.scores[-1]) != (0.0, 1.0):
            raise ValueError('"scores" must begin with 0 and end with 1')

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(count,) in 0..1 to (count,) in 0..1."""
        return np.interp(scores, self.scores, self.values)


Method: TypeAlias = Logistic | Isotonic


@dataclass(frozen=True)
class Calibration:
    """A fitted map; `fitted_on` is the SHA-256 of the file of pairs that it was fitted on."""

    method: Method
    fitted_on: str

    @classmethod
    def load(cls, directory: Path) -> Calibration | None:
        """The calibration in a model's directory, if there is one.

        Raises:
            UnusableModel: the file is too large, not JSON, of another version, or not an increasing map.
        """
        path = directory / FILE_NAME
        if not path.is_file():
            return None
        if path.stat().st_size > _MAX_BYTES:
            raise UnusableModel(f'"{path}" has more than {_MAX_BYTES} bytes')
        try:
            return cls._parse(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise UnusableModel(f'"{path}" is not a calibration: {_reason(error)}') from error

    @classmethod
    def _parse(cls, content: Any) -> Calibration:
        if not isinstance(content, dict):
            raise TypeError("it must be a JSON object")
        if content["version"] != VERSION:
            raise ValueError(f"its version must be {VERSION}, not {content['version']!r}")
        if not isinstance(content["fitted_on"], str):
            raise TypeError('"fitted_on" must be a string')
        return cls(_parse_method(content), content["fitted_on"])

    def save(self, directory: Path) -> Path:
        """Write it into a model's directory; returns the path of the file."""
        content = {
            "version": VERSION,
            "method": self.method.name,
            "fitted_on": self.fitted_on,
            **asdict(self.method),
        }
        path = directory / FILE_NAME
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path

    def apply(self, scores: Scores) -> Scores:
        """(count,) in 0..1 to (count,) in 0..1, in the same order."""
        mapped: Scores = np.clip(self.method(scores.astype(np.float64)), 0.0, 1.0).astype(np.float32)
        return mapped


def calibrated(scores: Scores, calibration: Calibration | None) -> Scores:
    """Apply the calibration of a model that may have none."""
    return calibration.apply(scores) if calibration else scores


def softmax(logits: Scores) -> Scores:
    """(count, classes) to probabilities: rows that sum to 1."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def class_scores(outputs: Scores, labels: Sequence[str]) -> tuple[Scores, Scores]:
    """What a cross-encoder's outputs say of a pair.

        class_scores([[1.0, 3.0, 2.0]], ["contradiction", "entailment", "neutral"])
        # [0.69], [[0.09, 0.67, 0.24]]

    Args:
        outputs: (count, outputs), logits if there are several.
        labels: the names of the outputs; none if there is one.

    Returns:
        The raw score, (count,): the only output, or the logit of the class "entailment" against all others.
        If no class has this name, the last one is taken: 1 of 0 and 1. And (count, labels): probabilities.
    """
    if not labels:
        return outputs[:, 0], outputs[:, :0]
    names = [label.lower() for label in labels]
    position = names.index(_ENTAILMENT) if _ENTAILMENT in names else len(names) - 1
    others = np.delete(outputs, position, axis=1)
    highest = others.max(axis=1)
    raw: Scores = outputs[:, position] - highest - np.log(np.exp(others - highest[:, None]).sum(axis=1))
    return raw, softmax(outputs)


def logit(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of the sigmoid, of scores clipped away from 0 and 1 to keep it finite."""
    inside = np.clip(scores, _LEAST_SCORE, 1.0 - _LEAST_SCORE)
    return np.log(inside / (1.0 - inside))


@dataclass(frozen=True)
class CosineScorer:
    """The cosine clipped to 0..1, calibrated if the bi-encoder has a calibration."""

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


@dataclass(frozen=True)
class PairClassifier:
    """A linear layer over (u, v, |u-v|), where u and v have length 1.

    `weight` is (classes, 3 x dimension), `bias` is (classes,). `class_scores` is the score of each class in
    0..1, such as (0, 0.5, 1) for contradiction, neutral, entailment.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    class_scores: tuple[float, ...]
    calibration: Calibration | None = None

    @classmethod
    def load(cls, model_directory: Path) -> PairClassifier | None:
        """The classifier in a bi-encoder's directory, if there is one.

        Raises:
            UnusableModel: its files contradict each other.
        """
        directory = model_directory / CLASSIFIER_DIRECTORY
        if not directory.is_dir():
            return None
        weights = load_file(directory / _CLASSIFIER_WEIGHTS)
        class_scores = tuple(json.loads((directory / _CLASSIFIER_CONFIG).read_text())["class_scores"])
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
        directory = model_directory / CLASSIFIER_DIRECTORY
        directory.mkdir(exist_ok=True)
        save_file({"weight": self.weight, "bias": self.bias}, directory / _CLASSIFIER_WEIGHTS)
        (directory / _CLASSIFIER_CONFIG).write_text(
            json.dumps({"class_scores": self.class_scores}, indent=2) + "\n"
        )

    def logits(self, first: Embeddings, second: Embeddings) -> Scores:
        """(count, classes): the layer's outputs for pairs of rows, given as in `score`."""
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
            Scores in 0..1: the mean of `class_scores` weighted by the classes' probabilities, calibrated;
            and the sum of `class_scores` weighted by the logits. Both are (count,).
        """
        logits = self.logits(first, second)
        worth = np.asarray(self.class_scores, dtype=np.float32)
        scores: Scores = np.clip(softmax(logits) @ worth, 0.0, 1.0)
        raw: Scores = logits @ worth
        return calibrated(scores, self.calibration), raw


def _parse_method(content: dict[str, Any]) -> Method:
    name = content["method"]
    if name == Logistic.name:
        return Logistic(_number(content["slope"]), _number(content["intercept"]))
    if name == Isotonic.name:
        return Isotonic(_numbers(content["scores"]), _numbers(content["values"]))
    raise ValueError(f"its method must be {Logistic.name} or {Isotonic.name}, not {name!r}")


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise TypeError("its knots must be lists")
    return tuple(map(_number, value))


def _number(value: Any) -> float:
    # Bool counts as int elsewhere.
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} must be a number")
    return float(value)


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
