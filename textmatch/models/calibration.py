"""Rising maps from a model's scores to scores that mean something: of pairs scored 0.8, 80 % are the same.

A map is fitted by training on pairs with labels and kept in a small file beside the model. It never changes
the order of scores.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from textmatch.models.model_resolver import UnusableModel

FILE_NAME = "calibration.json"
VERSION = 1
MAX_KNOTS = 10_000
_MAX_BYTES = 1_000_000

Scores = NDArray[np.float32]
# Where float32 still tells a score from 0 and 1; the logit of either is infinite.
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
    """Straight lines between knots: `scores` from 0 to 1, `values` in 0..1, both rising from knot to knot."""

    scores: tuple[float, ...]
    values: tuple[float, ...]
    name: ClassVar[str] = "isotonic"

    def __post_init__(self) -> None:
        if not 2 <= len(self.scores) == len(self.values) <= MAX_KNOTS:
            raise ValueError(f"it needs as many scores as values, 2 to {MAX_KNOTS}")
        for name, column in (("scores", self.scores), ("values", self.values)):
            # Written so that NaN, which compares false with everything, is refused too.
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
        """What is kept in this directory, if anything is.

        Raises:
            UnusableModel: the file is too large, no JSON, of another version, or describes no rising map.
        """
        path = directory / FILE_NAME
        if not path.is_file():
            return None
        if path.stat().st_size > _MAX_BYTES:
            raise UnusableModel(f'"{path}" has more than {_MAX_BYTES} bytes')
        try:
            return cls._parse(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise UnusableModel(f'"{path}" holds no calibration: {_reason(error)}') from error

    @classmethod
    def _parse(cls, content: Any) -> Calibration:
        if not isinstance(content, dict):
            raise TypeError("it is no JSON object")
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']!r}, {VERSION} is needed")
        if not isinstance(content["fitted_on"], str):
            raise TypeError('"fitted_on" is no text')
        return cls(_parse_method(content), content["fitted_on"])

    def save(self, directory: Path) -> Path:
        """Write it into a directory; returns the path of the file."""
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
    """The scores of a model that may have a calibration."""
    return calibration.apply(scores) if calibration else scores


def logit(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of the sigmoid, with scores kept so far from 0 and 1 that it is finite."""
    inside = np.clip(scores, _LEAST_SCORE, 1.0 - _LEAST_SCORE)
    return np.log(inside / (1.0 - inside))


def _parse_method(content: dict[str, Any]) -> Method:
    name = content["method"]
    if name == Logistic.name:
        return Logistic(_number(content["slope"]), _number(content["intercept"]))
    if name == Isotonic.name:
        return Isotonic(_numbers(content["scores"]), _numbers(content["values"]))
    raise ValueError(f"its method is {name!r}, not {Logistic.name} or {Isotonic.name}")


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise TypeError("its knots must be lists")
    return tuple(map(_number, value))


def _number(value: Any) -> float:
    # Bool counts as int elsewhere.
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
