"""What a Match is asked and what it answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from textmatch.documents import Document
from textmatch.filters import Filter
from textmatch.score_fusion import ScoreComponents, Weights


class DegradedReason(enum.Enum):
    """What was left out of an answer for want of time, or because the encoder did not do it."""

    RERANK_LATE = "late"
    RERANK_REFUSED = "refused"
    RERANK_UNAVAILABLE = "unavailable"
    ENCODE_LATE = "encode_late"
    RECALL_LATE = "recall_late"


class Recall(enum.Enum):
    """How candidates are found."""

    # Hybrid where the collection has BM25, else dense.
    BEST = "best"
    DENSE = "dense"
    HYBRID = "hybrid"
    HYBRID_RRF = "hybrid_rrf"


class Rerank(enum.Enum):
    """Which stages score the candidates."""

    NONE = "none"
    CROSS_ENCODER = "cross_encoder"
    CASCADE = "cascade"


@dataclass(frozen=True)
class MatchOptions:
    """What a caller may ask for, with its defaults; `rerank_depth` 0 leaves it to the server."""

    top_k: int = 10
    candidate_count: int = 100
    condition: Filter | None = None
    min_score: float = 0.0
    recall: Recall = Recall.BEST
    rerank: Rerank = Rerank.CROSS_ENCODER
    rerank_depth: int = 0


@dataclass(frozen=True)
class ScoredDocument:
    """A match and what its score is made of.

    `combined_score` is the score before calibration; `rerank_score` is None if the pair was not scored.
    """

    document: Document
    score: float
    recall_score: float
    combined_score: float
    rerank_score: float | None
    parts: ScoreComponents
    pair_classifier_score: float | None = None


@dataclass
class Timings:
    """Milliseconds of each stage; a stage that did not run took none."""

    encode_ms: float = 0.0
    recall_ms: float = 0.0
    rerank_ms: float = 0.0
    total_ms: float = 0.0


@dataclass
class MatchResult:
    """Matches, best first, and how they came about."""

    matches: list[ScoredDocument] = field(default_factory=list)
    degraded: DegradedReason | None = None
    timings: Timings = field(default_factory=Timings)
    bi_encoder_model_id: str = ""
    cross_encoder_model_id: str = ""
    candidate_count: int = 0
    scored_count: int = 0
    recall: Recall = Recall.DENSE
    weights: Weights = field(default_factory=Weights)
