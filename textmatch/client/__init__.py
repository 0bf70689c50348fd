"""The Python client of textmatch.

from textmatch.client import TextMatchClient

with TextMatchClient() as client:
    for match in client.match("remove a directory tree", top_k=3):
        print(match.score, match.document.id, match.document.text)

`AsyncTextMatchClient` has the same methods for asyncio.
"""

from textmatch.client.arguments import TextPair
from textmatch.client.asyncio import DEFAULT_ENCODER, DEFAULT_MATCHER, AsyncTextMatchClient
from textmatch.client.connection import ServerUnreachable
from textmatch.client.results import AsyncResults, Results, ResultsNotRead
from textmatch.client.sync import TextMatchClient
from textmatch.collection_config import CollectionConfig, PayloadIndex
from textmatch.documents import Document
from textmatch.filters import (
    FieldExists,
    FieldIsNull,
    FieldMatch,
    FieldPrefix,
    FieldRange,
    FieldTimeRange,
    Filter,
    HasId,
    parse_time,
)
from textmatch.runtime.tls import ClientTls
from textmatch.types import (
    BatchMatchResult,
    CollectionSummary,
    DegradedReason,
    DocumentResult,
    DocumentState,
    DocumentStatus,
    DuplicatePage,
    DuplicatePair,
    EncodeResult,
    FoundDocuments,
    HealthState,
    IngestOutcome,
    IngestStatus,
    IngestSummary,
    LetterInfo,
    Match,
    MatchKeywords,
    MatchOptions,
    MatchResult,
    ModelInfo,
    ModelKind,
    Problem,
    Recall,
    Rerank,
    Role,
    ScoreExplanation,
    Scorer,
    ScoreResult,
    ServerHealth,
    StageTimings,
    Truncation,
)
from textmatch.wire.documents import DocumentLike, to_document

__all__ = [
    "DEFAULT_ENCODER",
    "DEFAULT_MATCHER",
    "AsyncResults",
    "AsyncTextMatchClient",
    "BatchMatchResult",
    "ClientTls",
    "CollectionConfig",
    "CollectionSummary",
    "DegradedReason",
    "Document",
    "DocumentLike",
    "DocumentResult",
    "DocumentState",
    "DocumentStatus",
    "DuplicatePage",
    "DuplicatePair",
    "EncodeResult",
    "FieldExists",
    "FieldIsNull",
    "FieldMatch",
    "FieldPrefix",
    "FieldRange",
    "FieldTimeRange",
    "Filter",
    "FoundDocuments",
    "HasId",
    "HealthState",
    "IngestOutcome",
    "IngestStatus",
    "IngestSummary",
    "LetterInfo",
    "Match",
    "MatchKeywords",
    "MatchOptions",
    "MatchResult",
    "ModelInfo",
    "ModelKind",
    "PayloadIndex",
    "Problem",
    "Recall",
    "Rerank",
    "Results",
    "ResultsNotRead",
    "Role",
    "ScoreExplanation",
    "ScoreResult",
    "Scorer",
    "ServerHealth",
    "ServerUnreachable",
    "StageTimings",
    "TextMatchClient",
    "TextPair",
    "Truncation",
    "parse_time",
    "to_document",
]
