"""Options and filters of a match, and its results.

Limits are checked in both directions: the client reports a bad option before it sends anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

from google.protobuf import struct_pb2

from textmatch.documents import text_violation
from textmatch.errors import InvalidInput, TextMatchError, Violation, raise_violations
from textmatch.filters import Condition, FieldExists, FieldMatch, FieldRange, Filter
from textmatch.runtime.grpc_errors import from_status, to_status
from textmatch.score_fusion import ScoreModel
from textmatch.types import (
    BatchMatchResult,
    DegradedReason,
    Match,
    MatchOptions,
    MatchResult,
    Recall,
    Rerank,
    ScoreExplanation,
    StageTimings,
)
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire import documents
from textmatch.wire.documents import to_value

MAX_TOP_K = 1_000
MAX_CANDIDATES = 1_000
MAX_FILTER_CONDITIONS = 256
MAX_FILTER_DEPTH = 8

_DEGRADED = {
    None: pb.DEGRADED_REASON_UNSPECIFIED,
    DegradedReason.RERANK_LATE: pb.DEGRADED_REASON_RERANK_LATE,
    DegradedReason.RERANK_REFUSED: pb.DEGRADED_REASON_RERANK_REFUSED,
    DegradedReason.RERANK_UNAVAILABLE: pb.DEGRADED_REASON_RERANK_UNAVAILABLE,
    DegradedReason.ENCODE_LATE: pb.DEGRADED_REASON_ENCODE_LATE,
    DegradedReason.RECALL_LATE: pb.DEGRADED_REASON_RECALL_LATE,
}
_DEGRADED_OF_PROTO = {message: reason for reason, message in _DEGRADED.items()}
_RECALL = {
    None: pb.RECALL_MODE_UNSPECIFIED,
    Recall.DENSE: pb.RECALL_MODE_DENSE,
    Recall.HYBRID: pb.RECALL_MODE_HYBRID,
}
_RECALL_OF_PROTO = {message: recall for recall, message in _RECALL.items()}
_RERANK = {
    Rerank.AUTO: pb.RERANK_MODE_AUTO,
    Rerank.NONE: pb.RERANK_MODE_NONE,
    Rerank.CROSS_ENCODER: pb.RERANK_MODE_CROSS_ENCODER,
    Rerank.CASCADE: pb.RERANK_MODE_CASCADE,
}
_RERANK_OF_PROTO = {
    pb.RERANK_MODE_UNSPECIFIED: Rerank.AUTO,
    **{message: rerank for rerank, message in _RERANK.items()},
}


def default_candidate_count(top_k: int) -> int:
    """How many documents are recalled if the caller does not set it."""
    return min(max(MatchOptions.candidate_count, top_k), MAX_CANDIDATES)


def options_to_proto(options: MatchOptions) -> pb.MatchOptions:
    """Checked options as a message.

    Raises:
        InvalidInput: naming every option that is out of range.
    """
    _check_options(options, "")
    return pb.MatchOptions(
        top_k=options.top_k,
        candidate_count=options.candidate_count,
        filter=filter_to_proto(options.where, "where") if options.where is not None else None,
        min_score=options.min_score,
        recall=_RECALL[options.recall],
        rerank=_RERANK[options.rerank],
        rerank_depth=options.rerank_depth,
        explain=options.explain,
        omit_text=options.omit_text,
        omit_attributes=options.omit_attributes,
    )


def options_from_proto(message: pb.MatchOptions) -> MatchOptions:
    """Checked options with defaults filled in.

    Raises:
        InvalidInput: naming the fields ("options.top_k") and their limits.
    """
    for field, value, known in (
        ("options.recall", message.recall, _RECALL_OF_PROTO),
        ("options.rerank", message.rerank, _RERANK_OF_PROTO),
    ):
        if value not in known:
            raise InvalidInput.of_field(field, f"has the unknown value {value}")
    top_k = message.top_k or MatchOptions.top_k
    options = MatchOptions(
        top_k=top_k,
        candidate_count=message.candidate_count or default_candidate_count(top_k),
        where=filter_from_proto(message.filter, "options.filter") if message.HasField("filter") else None,
        min_score=message.min_score,
        recall=_RECALL_OF_PROTO[message.recall],
        rerank=_RERANK_OF_PROTO[message.rerank],
        rerank_depth=message.rerank_depth,
        explain=message.explain,
        omit_text=message.omit_text,
        omit_attributes=message.omit_attributes,
    )
    _check_options(options, "options.")
    return options


def result_to_proto(result: MatchResult, options: MatchOptions) -> pb.MatchResponse:
    """The answer, with only the requested parts of the documents."""
    return pb.MatchResponse(
        matches=[_match_to_proto(match, options) for match in result.matches],
        degraded=_DEGRADED[result.degraded],
        timings=pb.StageTimings(**vars(result.timings)),
        bi_encoder_model_id=result.bi_encoder_model_id,
        cross_encoder_model_id=result.cross_encoder_model_id or "",
        candidate_count=result.candidate_count,
        scored_count=result.scored_count,
        recall=_RECALL[result.recall],
    )


def result_from_proto(query: str, message: pb.MatchResponse) -> MatchResult:
    """The answer to one query."""
    timings = message.timings
    return MatchResult(
        query=query,
        matches=tuple(_match_from_proto(match) for match in message.matches),
        degraded=_DEGRADED_OF_PROTO.get(message.degraded, DegradedReason.OTHER),
        timings=StageTimings(timings.encode_ms, timings.recall_ms, timings.rerank_ms, timings.total_ms),
        bi_encoder_model_id=message.bi_encoder_model_id,
        cross_encoder_model_id=message.cross_encoder_model_id or None,
        candidate_count=message.candidate_count,
        scored_count=message.scored_count,
        recall=_RECALL_OF_PROTO.get(message.recall),
    )


def batch_result_to_proto(
    query_index: int, result: MatchResult | TextMatchError, options: MatchOptions
) -> pb.BatchMatchResponse:
    """The answer to one query of many, or the error that it failed with."""
    if isinstance(result, TextMatchError):
        return pb.BatchMatchResponse(query_index=query_index, error=to_status(result))
    return pb.BatchMatchResponse(query_index=query_index, response=result_to_proto(result, options))


def batch_result_from_proto(position: int, query: str, message: pb.BatchMatchResponse) -> BatchMatchResult:
    """The answer to the query at this position of the caller's list."""
    if message.HasField("error"):
        return BatchMatchResult(position, None, from_status(message.error))
    return BatchMatchResult(position, result_from_proto(query, message.response), None)


def filter_to_proto(condition: Filter, path: str) -> pb.Filter:
    """The tree as messages; `path` names it in errors ("where").

    Raises:
        InvalidInput: naming a field name or value that cannot be sent.
    """
    return pb.Filter(
        must=_conditions_to_proto(condition.must, f"{path}.must"),
        should=_conditions_to_proto(condition.should, f"{path}.should"),
        must_not=_conditions_to_proto(condition.must_not, f"{path}.must_not"),
    )


def filter_from_proto(message: pb.Filter, path: str) -> Filter:
    """A checked filter.

    Raises:
        InvalidInput: naming the condition that is wrong ("filter.must[2].match.field").
    """
    if _count_conditions(message) > MAX_FILTER_CONDITIONS:
        raise InvalidInput.of_field(path, f"has more than {MAX_FILTER_CONDITIONS} conditions")
    return _filter_from_proto(message, path, depth=1)


def _check_options(options: MatchOptions, prefix: str) -> None:
    limits = [
        ("top_k", options.top_k, 1, MAX_TOP_K),
        ("candidate_count", options.candidate_count, min(options.top_k, MAX_CANDIDATES), MAX_CANDIDATES),
        ("rerank_depth", options.rerank_depth, 0, options.candidate_count),
        ("min_score", options.min_score, 0, 1),
    ]
    raise_violations(
        Violation.of_field(f"{prefix}{name}", f"is {value}; it must be {lowest:,} to {highest:,}")
        for name, value, lowest, highest in limits
        if not lowest <= value <= highest
    )


def _match_to_proto(match: Match, options: MatchOptions) -> pb.Match:
    document = replace(
        match.document,
        text="" if options.omit_text else match.document.text,
        attributes={} if options.omit_attributes else match.document.attributes,
    )
    explanation = match.explanation if options.explain else None
    return pb.Match(
        document=documents.to_proto(document),
        score=match.score,
        recall_score=match.recall_score,
        rerank_score=match.rerank_score,
        explanation=_explanation_to_proto(explanation) if explanation else None,
    )


def _match_from_proto(message: pb.Match) -> Match:
    return Match(
        document=documents.from_proto(message.document),
        score=message.score,
        recall_score=message.recall_score,
        rerank_score=message.rerank_score if message.HasField("rerank_score") else None,
        explanation=_explanation_from_proto(message.explanation) if message.HasField("explanation") else None,
    )


def _explanation_to_proto(explanation: ScoreExplanation) -> pb.ScoreExplanation:
    return pb.ScoreExplanation(
        cosine=explanation.cosine,
        lexical=explanation.lexical,
        pair_classifier_score=explanation.pair_classifier_score,
        weights=pb.ScoreWeights(**asdict(explanation.weights)),
    )


def _explanation_from_proto(message: pb.ScoreExplanation) -> ScoreExplanation:
    weights, has_classifier = message.weights, message.HasField("pair_classifier_score")
    return ScoreExplanation(
        cosine=message.cosine if message.HasField("cosine") else None,
        lexical=message.lexical if message.HasField("lexical") else None,
        pair_classifier_score=message.pair_classifier_score if has_classifier else None,
        weights=ScoreModel(weights.intercept, weights.cosine, weights.lexical, weights.pair),
    )


def _conditions_to_proto(conditions: tuple[Condition, ...], path: str) -> list[pb.Condition]:
    return [
        _condition_to_proto(condition, f"{path}[{position}]") for position, condition in enumerate(conditions)
    ]


def _condition_to_proto(condition: Condition, path: str) -> pb.Condition:
    match condition:
        case FieldMatch(field, values):
            _check_text(f"{path}.field", field)
            messages = []
            for position, value in enumerate(values):
                value_path = f"{path}.values[{position}]"
                if isinstance(value, str):
                    _check_text(value_path, value)
                messages.append(to_value(value, value_path))
            return pb.Condition(match=pb.FieldMatch(field=field, values=messages))
        case FieldRange(field, gt, gte, lt, lte):
            _check_text(f"{path}.field", field)
            return pb.Condition(range=pb.FieldRange(field=field, gt=gt, gte=gte, lt=lt, lte=lte))
        case FieldExists(field):
            _check_text(f"{path}.field", field)
            return pb.Condition(exists=pb.FieldExists(field=field))
        case Filter():
            return pb.Condition(filter=filter_to_proto(condition, path))


def _check_text(path: str, text: str) -> None:
    """Refuse a lone surrogate, which cannot be sent. An attribute may equal the empty string."""
    if text:
        raise_violations([text_violation(path, text)])


def _count_conditions(message: pb.Filter) -> int:
    children = [*message.must, *message.should, *message.must_not]
    nested = sum(_count_conditions(child.filter) for child in children if child.HasField("filter"))
    return len(children) + nested


def _filter_from_proto(message: pb.Filter, path: str, depth: int) -> Filter:
    if depth > MAX_FILTER_DEPTH:
        raise InvalidInput.of_field(path, f"is nested deeper than {MAX_FILTER_DEPTH} levels")
    return Filter(
        must=_conditions_from_proto(message.must, f"{path}.must", depth),
        should=_conditions_from_proto(message.should, f"{path}.should", depth),
        must_not=_conditions_from_proto(message.must_not, f"{path}.must_not", depth),
    )


def _conditions_from_proto(messages: Sequence[pb.Condition], path: str, depth: int) -> tuple[Condition, ...]:
    return tuple(
        _condition_from_proto(message, f"{path}[{position}]", depth)
        for position, message in enumerate(messages)
    )


def _condition_from_proto(message: pb.Condition, path: str, depth: int) -> Condition:
    match message.WhichOneof("condition"):
        case "match":
            name = _field_name(message.match.field, f"{path}.match.field")
            return FieldMatch(name, _match_values(message.match.values, f"{path}.match.values"))
        case "range":
            return _range_from_proto(message.range, f"{path}.range")
        case "exists":
            return FieldExists(_field_name(message.exists.field, f"{path}.exists.field"))
        case "filter":
            return _filter_from_proto(message.filter, f"{path}.filter", depth + 1)
    raise InvalidInput.of_field(path, "is empty; give one of match, range, exists, filter")


def _field_name(name: str, path: str) -> str:
    if not name.strip() or "\0" in name:
        raise InvalidInput.of_field(path, f"is {name!r}; it must name an attribute")
    return name


def _match_values(values: Sequence[struct_pb2.Value], path: str) -> tuple[str | int | bool, ...]:
    if not values:
        raise InvalidInput.of_field(path, "is empty; at least one value is needed")
    converted = tuple(_match_value(value, f"{path}[{position}]") for position, value in enumerate(values))
    if len({type(value) for value in converted}) > 1:
        raise InvalidInput.of_field(
            path, "mixes types; all values must be strings, whole numbers or booleans"
        )
    return converted


def _match_value(value: struct_pb2.Value, path: str) -> str | int | bool:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value" if value.number_value.is_integer():
            return int(value.number_value)
    raise InvalidInput.of_field(path, "must be a string, a whole number or a boolean")


def _range_from_proto(message: pb.FieldRange, path: str) -> FieldRange:
    bounds = {name: getattr(message, name) for name in ("gt", "gte", "lt", "lte") if message.HasField(name)}
    if not bounds:
        raise InvalidInput.of_field(path, "has no bound; give gt, gte, lt or lte")
    for name, bound in bounds.items():
        if math.isnan(bound):
            raise InvalidInput.of_field(f"{path}.{name}", "is not a number")
    return FieldRange(_field_name(message.field, f"{path}.field"), **bounds)
