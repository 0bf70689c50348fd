"""How the parts of a match become one score in 0..1, and the weights of that.

    evidence = min(bm25 / 24, 1) ** 3
    recall   = 1 - (1 - max(cosine, 0)) * (1 - lexical * evidence)
    score    = (1 - rerank) * recall + rerank * cross_encoder

Shared words close a part of the gap between the cosine and 1. BM25 grows with the number and the rarity of
the words that both texts have, so that its cube matters for long queries in technical terms and hardly for
a short question in everyday words, where shared words mislead. Parts that are missing change nothing.

With a calibration, the score is then 1 / (1 + exp(-(slope * score + intercept))): how likely the document is
relevant. It is monotone, so that it changes what scores mean and not their order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textmatch.errors import InvalidInput

# Beside a collection: where tuned weights are kept.
WEIGHTS_NOTE = "match_weights"

# BM25 of two texts that share so much that more would say nothing new.
_FULL_EVIDENCE = 24.0
_EVIDENCE_POWER = 3


@dataclass(frozen=True)
class ScoreCalibration:
    """Makes a score the probability that the document is relevant."""

    slope: float
    intercept: float


@dataclass(frozen=True)
class Weights:
    """How much each part counts, 0..1; the defaults hold for corpora that nobody tuned them on."""

    lexical: float = 0.5
    rerank: float = 0.02
    calibration: ScoreCalibration | None = None


@dataclass(frozen=True)
class ScoreComponents:
    """What recall knows of one candidate: cosine -1..1, BM25 from 0 up or None."""

    cosine: float
    bm25: float | None = None


def lexical_evidence(bm25: float | None) -> float:
    """How much the shared words say, 0..1."""
    if bm25 is None:
        return 0.0
    return float(min(max(bm25, 0.0) / _FULL_EVIDENCE, 1.0) ** _EVIDENCE_POWER)


def recall_score(parts: ScoreComponents, weights: Weights) -> float:
    """Cosine and shared words, 0..1; opposite is as good as unrelated."""
    similarity = min(max(parts.cosine, 0.0), 1.0)
    return 1.0 - (1.0 - similarity) * (1.0 - weights.lexical * lexical_evidence(parts.bm25))


def combined_score(recall: float, cross_encoder: float, weights: Weights) -> float:
    """Both scores, each 0..1, as one before calibration, 0..1."""
    return weights.rerank * cross_encoder + (1.0 - weights.rerank) * recall


def calibrated(score: float, weights: Weights) -> float:
    """What the caller sees, 0..1."""
    if weights.calibration is None:
        return min(max(score, 0.0), 1.0)
    exponent = weights.calibration.slope * score + weights.calibration.intercept
    # tanh does not overflow, whatever the exponent.
    return 0.5 * (1.0 + math.tanh(exponent / 2.0))


def to_mapping(weights: Weights) -> dict[str, Any]:
    """JSON-like, to be kept beside a collection."""
    return dataclasses.asdict(weights)


def from_mapping(values: Mapping[str, Any]) -> Weights:
    """The reverse of `to_mapping`.

    Raises:
        InvalidInput: naming what is missing or out of its limits.
    """
    return Weights(
        lexical=_number("lexical", values.get("lexical"), 0.0, 1.0),
        rerank=_number("rerank", values.get("rerank"), 0.0, 1.0),
        calibration=_calibration(values.get("calibration")),
    )


def _calibration(values: Any) -> ScoreCalibration | None:
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise InvalidInput.of_field("weights.calibration", f"is {values!r}; it must have slope and intercept")
    return ScoreCalibration(
        slope=_number("calibration.slope", values.get("slope"), 0.0, math.inf),
        intercept=_number("calibration.intercept", values.get("intercept"), -math.inf, math.inf),
    )


def _number(name: str, value: Any, lowest: float, highest: float) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and lowest <= value <= highest:
        return float(value)
    raise InvalidInput.of_field(f"weights.{name}", f"is {value!r}; it must be {lowest:g} to {highest:g}")
