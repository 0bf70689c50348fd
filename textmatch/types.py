"""Options, results and enums that the client, the matcher and the encoder's clients share.

Plain values, without protobuf and gRPC. `textmatch.wire` converts them to and from messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from textmatch.collection_config import CollectionConfig
from textmatch.documents import Document, Passage
from textmatch.errors import TextMatchError
from textmatch.filters import Condition, Filter
from textmatch.score_fusion import ScoreModel
from textmatch.vectors import Embeddings

Scores = NDArray[np.float32]

# That one kind of search finds.
MAX_CANDIDATES = 1_000
# Of a match.
MAX_EXCLUDED_IDS = 1_000
# With which one document is compared in a search for duplicates.
MAX_NEIGHBORS = 100


class Role(StrEnum):
    """What a text is used for. Some models prepend a prompt that depends on it."""

    QUERY = "query"
    DOCUMENT = "document"


class Scorer(StrEnum):
    """Which kind of model scores a pair."""

    CROSS_ENCODER = "cross-encoder"  # reads both texts together; slow and accurate
    PAIR_CLASSIFIER = "pair-classifier"  # for bi-encoders that were trained with one
    COSINE = "cosine"  # of the two embeddings, cut to 0..1


class Truncation(StrEnum):
    """What is done with a text that has more tokens than the model reads."""

    END = "end"  # the end is not read
    START = "start"  # the beginning is not read
    ERROR = "error"  # the call is refused, with the names and token counts of all such texts


class ModelKind(StrEnum):
    """What a model does."""

    BI_ENCODER = "bi-encoder"
    CROSS_ENCODER = "cross-encoder"
    OTHER = "other"  # the server is newer, and this client does not know the kind


class Recall(StrEnum):
    """How candidates are found."""

    DENSE = "dense"  # nearest embeddings
    HYBRID = "hybrid"  # nearest embeddings and BM25


class Rerank(StrEnum):
    """How candidates are scored."""

    AUTO = "auto"  # by the cross-encoder where it pays; docs/matching.md has the rule
    NONE = "none"
    CROSS_ENCODER = "cross-encoder"  # the best candidates, always
    CASCADE = "cascade"  # the bi-encoder's pair classifier, then the cross-encoder on the best


class DegradedReason(StrEnum):
    """Which part of an answer is missing that could have changed it."""

    RERANK_LATE = "RERANK_LATE"  # `scored_count` candidates were scored in time
    RERANK_REFUSED = "RERANK_REFUSED"
    RERANK_UNAVAILABLE = "RERANK_UNAVAILABLE"
    ENCODE_LATE = "ENCODE_LATE"  # candidates come from BM25 alone and are not scored
    RECALL_LATE = "RECALL_LATE"  # candidates are the nearest embeddings and are not scored
    OTHER = "OTHER"  # the server is newer, and this client does not know the reason


class IngestOutcome(StrEnum):
    """The result of ingesting one document."""

    ACCEPTED = "ACCEPTED"  # durable in the queue, searchable soon
    UNCHANGED = "UNCHANGED"  # already stored with the same content
    REJECTED = "REJECTED"  # not accepted; the result's `error` has the reason


class DocumentState(StrEnum):
    """The state of one document."""

    UNKNOWN = "UNKNOWN"
    PENDING = "PENDING"
    INDEXED = "INDEXED"
    FAILED = "FAILED"
    DELETED = "DELETED"


class HealthState(StrEnum):
    """The health that a server reports, or that it cannot be reached."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class MatchOptions:
    """Options of a match, with their defaults.

    Args:
        top_k: how many matches are returned at most, 1 to 1,000.
        candidate_count: how many documents are recalled, `top_k` to 1,000.
        where: only documents whose attributes match; None means all.
        min_score: leaves out matches with a lower score, 0 to 1.
        recall: how candidates are found; None means hybrid where the collection has BM25, else dense.
        rerank: how candidates are scored.
        rerank_depth: how many candidates are scored at most, the best first; 0: the server's default.
        explain: also return the components of every score.
        omit_text: leave the text out of the documents returned.
        omit_attributes: leave the attributes out of the documents returned.
        exclude_ids: documents that are not returned, at most 1,000.
        require_complete: raise AnswerIncomplete instead of returning a degraded answer.
        group_by: the path of an attribute: only the best of the documents with the same value is returned.
            Documents without a value stand alone. "": no groups.
    """

    top_k: int = 10
    candidate_count: int = 100
    where: Filter | None = None
    min_score: float = 0.0
    recall: Recall | None = None
    rerank: Rerank = Rerank.AUTO
    rerank_depth: int = 0
    explain: bool = False
    omit_text: bool = False
    omit_attributes: bool = False
    exclude_ids: tuple[str, ...] = ()
    require_complete: bool = False
    group_by: str = ""


class MatchKeywords(TypedDict, total=False):
    """`MatchOptions` as keyword arguments of the client's methods.

    Without `candidate_count`, at least `top_k` documents are recalled. `rerank` may also be None for
    `Rerank.AUTO`, False for `Rerank.NONE` and True for `Rerank.CROSS_ENCODER`. `where` may also be a single
    condition, or a string in the syntax of `--where`; None means all documents. `exclude_ids` may be any
    iterable, or a single id.
    """

    top_k: int
    candidate_count: int
    where: Condition | str | None
    min_score: float
    recall: Recall | None
    rerank: Rerank | bool | None
    rerank_depth: int
    explain: bool
    omit_text: bool
    omit_attributes: bool
    exclude_ids: str | Iterable[str]
    require_complete: bool
    group_by: str


@dataclass(frozen=True)
class ScoreExplanation:
    """The parts of a score, and the model that fused them; docs/matching.md has the formula."""

    cosine: float | None  # -1..1; None if the query was not embedded in time
    lexical: float | None  # the evidence of shared terms, 0..1; None without BM25
    pair_classifier_score: float | None  # 0..1; None without a classifier stage
    weights: ScoreModel


@dataclass(frozen=True)
class MatchedPassage:
    """The part of a document that means about the same as the query: `text[start:end]` of the document.

    `number` is its position among the passages of the document. A document that fits into one passage is the
    passage 0. `text` is empty if texts were omitted.
    """

    text: str
    start: int
    end: int
    number: int
    score: float


@dataclass(frozen=True)
class Match:
    """A stored document that means about the same as the query. Scores are 0..1.

    The text of a document that has several passages is that of the best one. `get` reads all of it.
    """

    document: Document
    score: float  # the probability that the document is relevant; matches are sorted by it
    recall_score: float  # the same without the cross-encoder
    rerank_score: float | None  # None if the cross-encoder did not score this document
    explanation: ScoreExplanation | None = None  # None unless the options request it
    query_passage: Passage | None = None  # what fits it best of a query that was divided, see MatchResult

    @property
    def passage(self) -> MatchedPassage:
        """The best passage of the document. It gives the document its score."""
        text = self.document.text
        place = self.document.passage or Passage(0, 0, len(text))
        return MatchedPassage(text, place.start, place.end, place.number, self.score)


@dataclass
class StageTimings:
    """The time of each stage of one match, in milliseconds, measured in the matcher."""

    encode_ms: float = 0.0
    recall_ms: float = 0.0
    rerank_ms: float = 0.0
    total_ms: float = 0.0


@dataclass
class MatchResult:
    """The best matches of one query, highest score first. Iterating gives the matches."""

    query: str  # or the id of the document that was given instead
    matches: tuple[Match, ...] = ()
    degraded: DegradedReason | None = None
    timings: StageTimings = field(default_factory=StageTimings)
    bi_encoder_model_id: str = ""
    cross_encoder_model_id: str | None = None  # None if no pair was scored
    candidate_count: int = 0  # how many were recalled
    scored_count: int = 0  # how many of them the cross-encoder scored
    recall: Recall | None = None  # how they were recalled; None if there is no collection
    filter_warnings: tuple[str, ...] = ()  # what is suspicious about the filter, if no document matched
    query_passage_count: int = 1  # above 1 if the query is longer than the model reads, and was divided

    def __iter__(self) -> Iterator[Match]:
        return iter(self.matches)

    def __len__(self) -> int:
        return len(self.matches)


@dataclass(frozen=True)
class BatchMatchResult:
    """The answer to one query of many: either `result` or `error` is set."""

    query_index: int
    result: MatchResult | None
    error: TextMatchError | None


@dataclass(frozen=True)
class DuplicateOptions:
    """Options of a search for duplicates, with their defaults.

    Args:
        min_score: leaves out pairs with a lower score, above 0 to 1.
        neighbors: how many nearest others a document is compared with, 1 to 100.
        where: only pairs of documents that both match; None means all.
        rerank: whether the cross-encoder scores the pairs.
        omit_text: leave the texts out.
        resume_token: of an earlier page, or the id of a document, to go on after it; "": from the first one.
    """

    min_score: float = 0.5
    neighbors: int = 10
    where: Filter | None = None
    rerank: bool = True
    omit_text: bool = False
    resume_token: str = ""


@dataclass(frozen=True)
class DuplicatePair:
    """Two documents, without attributes, that mean about the same. Scores are 0..1."""

    first: Document
    second: Document
    score: float  # the probability that they mean the same
    recall_score: float  # the same without the cross-encoder
    rerank_score: float | None  # None if the cross-encoder did not score the pair


@dataclass(frozen=True)
class DuplicatePage:
    """The pairs that were found for some documents. Iterating gives the pairs."""

    pairs: tuple[DuplicatePair, ...]
    resume_token: str  # continues after these documents
    compared_count: int  # how many documents there were
    scored_count: int  # how many pairs the cross-encoder scored
    is_last: bool  # all documents were compared

    def __iter__(self) -> Iterator[DuplicatePair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class DocumentResult:
    """The result of one document; `position` is its index in the input, from 0.

    The version of an accepted delete is the highest one that is known to be deleted, or 0.
    """

    position: int
    id: str
    outcome: IngestOutcome
    version: int = 0  # under which it was accepted or is stored; 0 if it was rejected
    error: TextMatchError | None = None


@dataclass(frozen=True)
class IngestSummary:
    """Counts of one ingest, and the first rejected documents with their errors."""

    accepted: int
    unchanged: int
    rejected: int
    rejections: tuple[DocumentResult, ...]


@dataclass(frozen=True)
class Problem:
    """A store that fails, or a collection whose indexing is paused until an operator acts.

    Args:
        source: "qdrant", "redis" or "worker".
        collection: the paused collection; "" for a store.
        reason: an error reason without prefix, such as "STORE_FULL".
    """

    source: str
    collection: str
    reason: str
    message: str


@dataclass(frozen=True)
class DocumentStatus:
    """What became of a document.

    Args:
        state: None if only the index knows it and cannot be read.
        version: that is stored, queued or in the dead letters, as the state says; of a deleted document the
            highest one that is known to be deleted; 0: none is known.
        error: of a FAILED document, cut to 1 KiB; "" of others.
    """

    id: str
    state: DocumentState | None
    version: int = 0
    error: str = ""


@dataclass(frozen=True)
class IngestStatus:
    """The size of the queue, and the states of documents if they were requested."""

    document_count: int | None  # None while the index cannot be read
    queued_count: int
    oldest_queued_seconds: float
    dead_letter_count: int
    collection: str  # its name
    model_id: str  # the bi-encoder in use; empty before the first document
    document_state: DocumentState | None = None
    document_error: str | None = None
    problems: tuple[Problem, ...] = ()
    # Documents of which the model has not read the end; None while the index cannot be read.
    truncated_count: int | None = None
    documents: tuple[DocumentStatus, ...] = ()


@dataclass(frozen=True)
class FoundDocuments:
    """The documents that are stored, in the order of their ids in the request, and the ids of the others."""

    documents: tuple[Document, ...]
    missing_ids: tuple[str, ...]


@dataclass(frozen=True)
class LetterInfo:
    """A document that could not be indexed, or a message in the queue that could not be read.

    Args:
        id: of the document, or one that the server made for a message.
        reason: an error reason without prefix, such as "TEXT_TOO_LARGE", or "MALFORMED".
        failed_at: seconds since 1970.
        text: of the document, cut to 32 KiB; None for a message.
        version: of the document; 0 for a message.
        raw: the message, cut to 32 KiB; None for a document.
    """

    id: str
    reason: str
    error: str
    failed_at: float
    text: str | None
    version: int
    raw: str | None


@dataclass(frozen=True)
class CollectionSummary:
    """A collection. `config` has its name and settings."""

    config: CollectionConfig
    model_id: str  # the bi-encoder in use; empty before the first document
    document_count: int


@dataclass(frozen=True, eq=False)
class EncodeResult:
    """`embeddings` is (count, dimension) float32, in the order of the texts.

    Rows have length 1, unless the model's own lengths were asked for.
    """

    embeddings: Embeddings
    token_counts: tuple[int, ...]
    truncated: tuple[bool, ...]  # the model did not read all of the text
    model_id: str


@dataclass(frozen=True, eq=False)
class ScoreResult:
    """`scores` is (count,) float32 in 0..1, in the order of the pairs."""

    scores: Scores
    raw_scores: Scores  # before the mapping to 0..1: a logit, or a cosine in -1..1
    truncated: tuple[bool, ...]  # the model did not read all of the two texts
    model_id: str
    labels: tuple[str, ...] = ()  # the classes of a cross-encoder that has several
    class_scores: Scores | None = None  # (count, labels): their probabilities; None without labels


@dataclass(frozen=True)
class ModelInfo:
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
    labels: tuple[str, ...] = ()  # the classes of a cross-encoder that has several


@dataclass(frozen=True)
class ServerHealth:
    """The health of one server."""

    name: str
    address: str
    state: HealthState
