"""Documents and matches between plain Python and protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from textmatch.client.results import (
    DegradedReason,
    Match,
    MatchResult,
    Recall,
    ScoreExplanation,
    StageTimings,
)
from textmatch.documents import Document, document_violations
from textmatch.errors import InvalidInput, Violation
from textmatch.v1 import error_reason_pb2
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.attributes import from_struct, to_struct

# A document, or a dict with the keys "id", "text" and, if wanted, "attributes" and "version".
DocumentLike: TypeAlias = Document | Mapping[str, Any]

_DEGRADED = {
    pb.DEGRADED_REASON_UNSPECIFIED: None,
    pb.DEGRADED_REASON_RERANK_LATE: DegradedReason.RERANK_LATE,
    pb.DEGRADED_REASON_RERANK_REFUSED: DegradedReason.RERANK_REFUSED,
    pb.DEGRADED_REASON_RERANK_UNAVAILABLE: DegradedReason.RERANK_UNAVAILABLE,
    pb.DEGRADED_REASON_ENCODE_LATE: DegradedReason.ENCODE_LATE,
    pb.DEGRADED_REASON_RECALL_LATE: DegradedReason.RECALL_LATE,
}
_RECALL = {
    pb.RECALL_MODE_DENSE: Recall.DENSE,
    pb.RECALL_MODE_HYBRID: Recall.HYBRID,
    pb.RECALL_MODE_HYBRID_RRF: Recall.HYBRID_RRF,
}
_JSON_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
_TYPES: dict[str, tuple[type, str]] = {
    "id": (str, "a string"),
    "text": (str, "a string"),
    "attributes": (Mapping, "an object"),
    "version": (int, "a whole number"),
}
_OPTIONAL = ("attributes", "version")


def to_document(value: DocumentLike) -> Document:
    """A checked document, from a dict if it is one.

    Raises:
        InvalidInput: naming every field that is missing, unknown, of the wrong type or out of its limits.
    """
    document = _from_mapping(vars(value) if isinstance(value, Document) else value)
    if violations := document_violations(document):
        raise InvalidInput(violations)
    return document


def to_proto(document: Document) -> pb.Document:
    """The document as a message.

    Raises:
        InvalidInput: naming the attribute that cannot be sent.
    """
    return pb.Document(
        id=document.id,
        text=document.text,
        attributes=to_struct(document.attributes) if document.attributes else None,
        version=document.version or None,
    )


def from_proto(message: pb.Document) -> Document:
    """The document of a message."""
    return Document(message.id, message.text, from_struct(message.attributes), message.version)


def to_match_result(query: str, response: pb.MatchResponse) -> MatchResult:
    """The answer to one query."""
    timings = response.timings
    return MatchResult(
        query=query,
        matches=tuple(_match(match) for match in response.matches),
        degraded=_DEGRADED.get(response.degraded, DegradedReason.OTHER),
        timings=StageTimings(timings.encode_ms, timings.recall_ms, timings.rerank_ms, timings.total_ms),
        bi_encoder_model_id=response.bi_encoder_model_id,
        cross_encoder_model_id=response.cross_encoder_model_id or None,
        candidate_count=response.candidate_count,
        scored_count=response.scored_count,
        recall=_RECALL.get(response.recall),
    )


def _match(message: pb.Match) -> Match:
    return Match(
        document=from_proto(message.document),
        score=message.score,
        recall_score=message.recall_score,
        rerank_score=message.rerank_score if message.HasField("rerank_score") else None,
        explanation=_explanation(message.explanation) if message.HasField("explanation") else None,
    )


def _explanation(message: pb.ScoreExplanation) -> ScoreExplanation:
    weights = message.weights
    calibration = (weights.calibration_slope, weights.calibration_intercept)
    return ScoreExplanation(
        cosine=message.cosine,
        bm25=message.bm25 if message.HasField("bm25") else None,
        lexical_evidence=message.lexical_evidence,
        pair_classifier_score=(
            message.pair_classifier_score if message.HasField("pair_classifier_score") else None
        ),
        combined_score=message.combined_score,
        lexical_weight=weights.lexical,
        rerank_weight=weights.rerank,
        calibration=calibration if weights.HasField("calibration_slope") else None,
    )


def _from_mapping(value: Any) -> Document:
    if not isinstance(value, Mapping):
        raise InvalidInput.of_field("document", f"is {_type_name(value)}; it must be an object")
    violations = [
        *(_violation(name, "is not a field of a document") for name in value if name not in _TYPES),
        *(_violation(name, problem) for name in _TYPES if (problem := _type_problem(name, value))),
    ]
    if violations:
        raise InvalidInput(violations)
    attributes = value.get("attributes")
    version = value.get("version")
    return Document(
        id=value["id"],
        text=value["text"],
        attributes={} if attributes is None else attributes,
        version=0 if version is None else version,
    )


def _type_problem(name: str, value: Mapping[str, Any]) -> str | None:
    given = value.get(name)
    if given is None:
        return None if name in _OPTIONAL else "is missing"
    kind, kind_name = _TYPES[name]
    if isinstance(given, kind) and not isinstance(given, bool):
        return None
    return f"is {_type_name(given)}; it must be {kind_name}"


def _type_name(value: Any) -> str:
    return _JSON_NAMES.get(type(value), f"a {type(value).__name__}")


def _violation(field: object, description: str) -> Violation:
    return Violation(str(field), error_reason_pb2.ERROR_REASON_FIELD_INVALID, description)
