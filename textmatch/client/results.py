"""What the client hands back: typed values, numpy arrays for vectors, no protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from textmatch.documents import Document
from textmatch.errors import TextMatchError
from textmatch.vectors import Embeddings

Scores = NDArray[np.float32]


class DegradedReason(StrEnum):
    """What was left out of an answer."""

    RERANK_LATE = "RERANK_LATE"  # `scored_count` candidates were scored in time
    RERANK_REFUSED = "RERANK_REFUSED"
    RERANK_UNAVAILABLE = "RERANK_UNAVAILABLE"
    ENCODE_LATE = "ENCODE_LATE"  # found by shared words alone
    RECALL_LATE = "RECALL_LATE"  # the nearest embeddings, not scored
    OTHER = "OTHER"  # a newer server has a reason that this client does not know


class Recall(StrEnum):
    """How candidates are found."""

    DENSE = "dense"  # nearest embeddings
    HYBRID = "hybrid"  # those and BM25, with weighted scores
    HYBRID_RRF = "hybrid-rrf"  # the same two, fused by ranks


class Rerank(StrEnum):
    """What scores the candidates."""

    NONE = "none"
    CROSS_ENCODER = "cross-encoder"
    CASCADE = "cascade"  # the bi-encoder's pair classifier, then the cross-encoder on the best


class IngestOutcome(StrEnum):
    """What became of one document."""

    ACCEPTED = "ACCEPTED"  # durable in the queue, searchable soon
    UNCHANGED = "UNCHANGED"  # stored already with the same content
    REJECTED = "REJECTED"  # not taken; the result's `error` says why


class DocumentState(StrEnum):
    """Where one document stands."""

    UNKNOWN = "UNKNOWN"
    PENDING = "PENDING"
    INDEXED = "INDEXED"
    FAILED = "FAILED"
    DELETED = "DELETED"


class HealthState(StrEnum):
    """What a server says of itself, or that it says nothing."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    UNREACHABLE = "unreachable"


class ModelKind(StrEnum):
    """What a model does."""

    BI_ENCODER = "bi-encoder"
    CROSS_ENCODER = "cross-encoder"
    OTHER = "other"  # a newer server has a kind that this client does not know


class Role(StrEnum):
    """What a text is used for; some models put a prompt before it that depends on this."""

    QUERY = "query"
    DOCUMENT = "document"


class Scorer(StrEnum):
    """Which kind of model scores a pair."""

    CROSS_ENCODER = "cross-encoder"  # reads both texts together; slow and accurate
    PAIR_CLASSIFIER = "pair-classifier"  # for bi-encoders that were trained with one
    COSINE = "cosine"  # of the two embeddings, cut to 0..1


@dataclass(frozen=True)
class ScoreExplanation:
    """What a score is made of; docs/matching.md has the formula."""

    cosine: float  # -1..1
    bm25: float | None  # from 0 up; None without BM25
    lexical_evidence: float  # what BM25 counts for, 0..1
    pair_classifier_score: float | None  # 0..1; None without a classifier stage
    combined_score: float  # 0..1, before calibration
    lexical_weight: float
    rerank_weight: float
    calibration: tuple[float, float] | None  # slope and intercept; None without


@dataclass(frozen=True)
class Match:
    """A stored document that means about the same as the query. Scores are 0..1."""

    document: Document
    score: float  # what matches are sorted by
    recall_score: float  # cosine of the embeddings, raised by shared words
    rerank_score: float | None  # None if the cross-encoder did not score this one
    explanation: ScoreExplanation | None = None  # None unless asked for


@dataclass(frozen=True)
class StageTimings:
    """Where the time of one match went, in milliseconds, as measured in the matcher."""

    encode_ms: float
    recall_ms: float
    rerank_ms: float
    total_ms: float


@dataclass(frozen=True)
class MatchResult:
    """The best matches of one query, highest score first; iterating gives the matches."""

    query: str
    matches: tuple[Match, ...]
    degraded: DegradedReason | None
    timings: StageTimings
    bi_encoder_model_id: str
    cross_encoder_model_id: str | None  # None if no pair was scored
    candidate_count: int = 0  # how many were recalled
    scored_count: int = 0  # how many of them the cross-encoder scored
    recall: Recall | None = None  # how they were recalled; None if nothing was

    def __iter__(self) -> Iterator[Match]:
        return iter(self.matches)

    def __len__(self) -> int:
        return len(self.matches)


@dataclass(frozen=True)
class BatchMatchResult:
    """The answer to one query of many: either `result` or `error` is there."""

    query_index: int
    result: MatchResult | None
    error: TextMatchError | None


@dataclass(frozen=True)
class DocumentResult:
    """What became of one document; `position` counts from 0 in the order they were given."""

    position: int
    id: str
    outcome: IngestOutcome
    version: int  # under which it was accepted; 0 if it was not
    error: TextMatchError | None


@dataclass(frozen=True)
class IngestSummary:
    """Counts of one ingest, and the first rejected documents with their errors."""

    accepted: int
    unchanged: int
    rejected: int
    rejections: tuple[DocumentResult, ...]


@dataclass(frozen=True)
class IngestStatus:
    """What waits in the queue, and where one document stands if one was asked for."""

    document_count: int
    queued_count: int
    oldest_queued_seconds: float
    dead_letter_count: int
    collection: str  # empty before the first document
    document_state: DocumentState | None
    document_error: str | None


@dataclass(frozen=True, eq=False)
class EncodeResult:
    """`embeddings` is (count, dimension) float32 with rows of length 1, in the order of the texts."""

    embeddings: Embeddings
    token_counts: tuple[int, ...]
    truncated: tuple[bool, ...]  # the model did not read the end of the text
    model_id: str


@dataclass(frozen=True, eq=False)
class ScoreResult:
    """`scores` is (count,) float32 in 0..1, in the order of the pairs."""

    scores: Scores
    raw_scores: Scores  # before the mapping to 0..1: a logit, or a cosine in -1..1
    truncated: tuple[bool, ...]  # the model did not read the end of one of the two texts
    model_id: str


@dataclass(frozen=True)
class Model:
    """A model that the encoder has loaded."""

    model_id: str
    name: str
    kind: ModelKind
    dimension: int  # 0 for a cross-encoder
    max_tokens: int
    dtype: str
    device: str
    has_pair_classifier: bool
    is_default: bool


@dataclass(frozen=True)
class ServerHealth:
    """How one server is."""

    name: str
    address: str
    state: HealthState
