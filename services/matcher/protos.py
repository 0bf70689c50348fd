"""Match messages to and from plain values, with every bad field named."""

from __future__ import annotations

import math
from collections.abc import Sequence

from google.protobuf import struct_pb2

from services.matcher.answers import DegradedReason, MatchOptions, MatchResult, Recall, Rerank, ScoredDocument
from textmatch.documents import Document
from textmatch.errors import InvalidInput
from textmatch.filters import Condition, FieldExists, FieldMatch, FieldRange, Filter
from textmatch.score_fusion import Weights, lexical_evidence
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.attributes import to_struct

MAX_TOP_K = 1_000
MAX_CANDIDATES = 1_000
MAX_FILTER_CONDITIONS = 256
MAX_FILTER_DEPTH = 8
_DEFAULT_TOP_K = 10
_DEFAULT_CANDIDATES = 100

_DEGRADED = {
    None: pb.DEGRADED_REASON_UNSPECIFIED,
    DegradedReason.RERANK_LATE: pb.DEGRADED_REASON_RERANK_LATE,
    DegradedReason.RERANK_REFUSED: pb.DEGRADED_REASON_RERANK_REFUSED,
    DegradedReason.RERANK_UNAVAILABLE: pb.DEGRADED_REASON_RERANK_UNAVAILABLE,
    DegradedReason.ENCODE_LATE: pb.DEGRADED_REASON_ENCODE_LATE,
    DegradedReason.RECALL_LATE: pb.DEGRADED_REASON_RECALL_LATE,
}
_RECALL = {
    pb.RECALL_MODE_UNSPECIFIED: Recall.BEST,
    pb.RECALL_MODE_DENSE: Recall.DENSE,
    pb.RECALL_MODE_HYBRID: Recall.HYBRID,
    pb.RECALL_MODE_HYBRID_RRF: Recall.HYBRID_RRF,
}
_RECALL_MODES = {recall: mode for mode, recall in _RECALL.items()}
_RERANK = {
    pb.RERANK_MODE_UNSPECIFIED: Rerank.CROSS_ENCODER,
    pb.RERANK_MODE_NONE: Rerank.NONE,
    pb.RERANK_MODE_CROSS_ENCODER: Rerank.CROSS_ENCODER,
    pb.RERANK_MODE_CASCADE: Rerank.CASCADE,
}


def to_options(options: pb.MatchOptions) -> MatchOptions:
    """Checked options with defaults filled in.

    Raises:
        InvalidInput: naming the field and its limit.
    """
    top_k = options.top_k or _DEFAULT_TOP_K
    if not 1 <= top_k <= MAX_TOP_K:
        raise InvalidInput.of_field("options.top_k", f"is {top_k}; it must be 1 to {MAX_TOP_K}")
    candidate_count = options.candidate_count or max(_DEFAULT_CANDIDATES, top_k)
    if not top_k <= candidate_count <= MAX_CANDIDATES:
        limits = f"it must be {top_k} (top_k) to {MAX_CANDIDATES}"
        raise InvalidInput.of_field("options.candidate_count", f"is {candidate_count}; {limits}")
    if not 0.0 <= options.min_score <= 1.0:
        raise InvalidInput.of_field("options.min_score", f"is {options.min_score}; it must be 0 to 1")
    if options.recall not in _RECALL:
        raise InvalidInput.of_field("options.recall", f"{options.recall} is not known")
    if options.rerank not in _RERANK:
        raise InvalidInput.of_field("options.rerank", f"{options.rerank} is not known")
    if not 0 <= options.rerank_depth <= candidate_count:
        limits = f"it must be 0 to {candidate_count} (candidate_count)"
        raise InvalidInput.of_field("options.rerank_depth", f"is {options.rerank_depth}; {limits}")
    return MatchOptions(
        top_k=top_k,
        candidate_count=candidate_count,
        condition=to_filter(options.filter, "options.filter") if options.HasField("filter") else None,
        min_score=options.min_score,
        recall=_RECALL[options.recall],
        rerank=_RERANK[options.rerank],
        rerank_depth=options.rerank_depth,
    )


def to_filter(message: pb.Filter, field: str) -> Filter:
    """A checked filter.

    Raises:
        InvalidInput: naming the condition that is wrong ("filter.must[2].match.field").
    """
    if _count_conditions(message) > MAX_FILTER_CONDITIONS:
        raise InvalidInput.of_field(field, f"has more than {MAX_FILTER_CONDITIONS} conditions")
    return _filter(message, field, depth=1)


def to_match_response(result: MatchResult, options: pb.MatchOptions) -> pb.MatchResponse:
    """The answer, with only the parts of the documents that were asked for."""
    timings = result.timings
    return pb.MatchResponse(
        matches=[_match(match, result.weights, options) for match in result.matches],
        degraded=_DEGRADED[result.degraded],
        timings=pb.StageTimings(
            encode_ms=timings.encode_ms,
            recall_ms=timings.recall_ms,
            rerank_ms=timings.rerank_ms,
            total_ms=timings.total_ms,
        ),
        bi_encoder_model_id=result.bi_encoder_model_id,
        cross_encoder_model_id=result.cross_encoder_model_id,
        candidate_count=result.candidate_count,
        scored_count=result.scored_count,
        recall=_RECALL_MODES[result.recall],
    )


def _match(match: ScoredDocument, weights: Weights, options: pb.MatchOptions) -> pb.Match:
    return pb.Match(
        document=_document(match.document, options),
        score=match.score,
        recall_score=match.recall_score,
        rerank_score=match.rerank_score,
        explanation=_explanation(match, weights) if options.explain else None,
    )


def _explanation(match: ScoredDocument, weights: Weights) -> pb.ScoreExplanation:
    calibration = weights.calibration
    return pb.ScoreExplanation(
        cosine=match.parts.cosine,
        bm25=match.parts.bm25,
        lexical_evidence=lexical_evidence(match.parts.bm25),
        pair_classifier_score=match.pair_classifier_score,
        combined_score=match.combined_score,
        weights=pb.ScoreWeights(
            lexical=weights.lexical,
            rerank=weights.rerank,
            calibration_slope=calibration.slope if calibration else None,
            calibration_intercept=calibration.intercept if calibration else None,
        ),
    )


def _document(document: Document, options: pb.MatchOptions) -> pb.Document:
    return pb.Document(
        id=document.id,
        text="" if options.omit_text else document.text,
        attributes=None if options.omit_attributes else to_struct(document.attributes),
        version=document.version,
    )


def _count_conditions(message: pb.Filter) -> int:
    children = [*message.must, *message.should, *message.must_not]
    nested = sum(_count_conditions(child.filter) for child in children if child.HasField("filter"))
    return len(children) + nested


def _filter(message: pb.Filter, field: str, depth: int) -> Filter:
    if depth > MAX_FILTER_DEPTH:
        raise InvalidInput.of_field(field, f"is nested deeper than {MAX_FILTER_DEPTH} levels")
    return Filter(
        must=_conditions(message.must, f"{field}.must", depth),
        should=_conditions(message.should, f"{field}.should", depth),
        must_not=_conditions(message.must_not, f"{field}.must_not", depth),
    )


def _conditions(messages: Sequence[pb.Condition], field: str, depth: int) -> tuple[Condition, ...]:
    return tuple(
        _condition(message, f"{field}[{position}]", depth) for position, message in enumerate(messages)
    )


def _condition(message: pb.Condition, field: str, depth: int) -> Condition:
    match message.WhichOneof("condition"):
        case "match":
            name = _field_name(message.match.field, f"{field}.match.field")
            return FieldMatch(name, _match_values(message.match.values, f"{field}.match.values"))
        case "range":
            return _range(message.range, f"{field}.range")
        case "exists":
            return FieldExists(_field_name(message.exists.field, f"{field}.exists.field"))
        case "filter":
            return _filter(message.filter, f"{field}.filter", depth + 1)
    raise InvalidInput.of_field(field, "is empty; give one of match, range, exists, filter")


def _field_name(name: str, field: str) -> str:
    if not name.strip() or "\0" in name:
        raise InvalidInput.of_field(field, f"is {name!r}; it must name an attribute")
    return name


def _match_values(values: Sequence[struct_pb2.Value], field: str) -> tuple[str | int | bool, ...]:
    if not values:
        raise InvalidInput.of_field(field, "is empty; at least one value is needed")
    converted = tuple(_match_value(value, f"{field}[{position}]") for position, value in enumerate(values))
    if len({type(value) for value in converted}) > 1:
        raise InvalidInput.of_field(
            field, "mixes types; all values must be strings, whole numbers or booleans"
        )
    return converted


def _match_value(value: struct_pb2.Value, field: str) -> str | int | bool:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value" if value.number_value.is_integer():
            return int(value.number_value)
    raise InvalidInput.of_field(field, "must be a string, a whole number or a boolean")


def _range(message: pb.FieldRange, field: str) -> FieldRange:
    bounds = {name: getattr(message, name) for name in ("gt", "gte", "lt", "lte") if message.HasField(name)}
    if not bounds:
        raise InvalidInput.of_field(field, "has no bound; give gt, gte, lt or lte")
    for name, bound in bounds.items():
        if math.isnan(bound):
            raise InvalidInput.of_field(f"{field}.{name}", "is not a number")
    return FieldRange(_field_name(message.field, f"{field}.field"), **bounds)
