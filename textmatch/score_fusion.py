"""Fuses the cosine, BM25 and cross-encoder scores of a match into one score in 0..1.

    evidence = min(bm25 / 24, 1) ** 3
    recall   = 1 - (1 - max(cosine, 0)) * (1 - lexical * evidence)
    score    = (1 - rerank) * recall + rerank * cross_encoder

Lexical evidence closes a part of the gap between the cosine and 1. BM25 grows with the number and the rarity
of shared terms. The cube keeps the evidence large for long queries in technical terms, where shared terms
matter, and small for short everyday questions, where they mislead. A missing component changes nothing.

A calibration then maps the score to the probability that the document is relevant:
1 / (1 + exp(-(slope * score + intercept))). It keeps the order of the matches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textmatch.errors import InvalidInput

# The note of a collection that holds its tuned weights.
WEIGHTS_NOTE = "match_weights"

# A higher BM25 adds no evidence.
_FULL_EVIDENCE = 24.0
_EVIDENCE_POWER = 3


@dataclass(frozen=True)
class ScoreCalibration:
    """Maps a score to the probability that the document is relevant."""

    slope: float
    intercept: float


@dataclass(frozen=True)
class Weights:
    """The weight of each component, 0..1. The defaults are for collections without tuned weights."""

    lexical: float = 0.5
    rerank: float = 0.02
    calibration: ScoreCalibration | None = None


@dataclass(frozen=True)
class ScoreComponents:
    """The search scores of one candidate: cosine -1..1, and BM25 from 0 up or None."""

    cosine: float
    bm25: float | None = None


def lexical_evidence(bm25: float | None) -> float:
    """Lexical evidence, 0..1; 0 without BM25."""
    if bm25 is None:
        return 0.0
    return float(min(max(bm25, 0.0) / _FULL_EVIDENCE, 1.0) ** _EVIDENCE_POWER)


def recall_score(parts: ScoreComponents, weights: Weights) -> float:
    """Cosine and lexical evidence as one score, 0..1. Negative cosines count as 0."""
    similarity = min(max(parts.cosine, 0.0), 1.0)
    return 1.0 - (1.0 - similarity) * (1.0 - weights.lexical * lexical_evidence(parts.bm25))


def combined_score(recall: float, cross_encoder: float, weights: Weights) -> float:
    """The weighted mean of both scores, 0..1, before calibration."""
    return weights.rerank * cross_encoder + (1.0 - weights.rerank) * recall


def calibrated(score: float, weights: Weights) -> float:
    """The score that the caller sees, 0..1."""
    if weights.calibration is None:
        return min(max(score, 0.0), 1.0)
    exponent = weights.calibration.slope * score + weights.calibration.intercept
    # Unlike exp, tanh does not overflow.
    return 0.5 * (1.0 + math.tanh(exponent / 2.0))


def to_mapping(weights: Weights) -> dict[str, Any]:
    """JSON-like values, for the notes of a collection."""
    return dataclasses.asdict(weights)


def from_mapping(values: Mapping[str, Any]) -> Weights:
    """The reverse of `to_mapping`.

    Raises:
        InvalidInput: naming the value that is missing or out of range.
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
