"""Options of a match, and its results.

Limits are checked in both directions: the client reports a bad option before it sends anything.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from textmatch.documents import Passage, id_violation, text_violation
from textmatch.errors import InvalidInput, TextMatchError, Violation, raise_violations
from textmatch.filters import MAX_FIELD_BYTES
from textmatch.runtime.grpc_errors import from_status, to_status
from textmatch.score_fusion import ScoreModel
from textmatch.time_slices import in_slices
from textmatch.types import (
    MAX_CANDIDATES,
    MAX_EXCLUDED_IDS,
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
from textmatch.wire.filters import filter_from_proto, filter_to_proto

MAX_TOP_K = 1_000
# By default, gRPC's clients in Go, Java, C# and Node.js accept 4 MiB. The rest is for what is not a match.
MAX_ANSWER_BYTES = 4_000_000

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
        exclude_ids=options.exclude_ids,
        require_complete=options.require_complete,
        group_by=options.group_by,
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
        exclude_ids=tuple(message.exclude_ids),
        require_complete=message.require_complete,
        group_by=message.group_by,
    )
    _check_options(options, "options.")
    return options


async def result_to_proto(result: MatchResult, options: MatchOptions) -> pb.MatchResponse:
    """The answer, with only the requested parts of the documents. Other calls run in between.

    Raises:
        InvalidInput: it is larger than an answer may be.
    """
    response = pb.MatchResponse(
        degraded=_DEGRADED[result.degraded],
        timings=pb.StageTimings(**vars(result.timings)),
        bi_encoder_model_id=result.bi_encoder_model_id,
        cross_encoder_model_id=result.cross_encoder_model_id or "",
        candidate_count=result.candidate_count,
        scored_count=result.scored_count,
        recall=_RECALL[result.recall],
        filter_warnings=result.filter_warnings,
        query_passage_count=result.query_passage_count,
    )
    size_bytes = 0
    async for match in in_slices(result.matches):
        message = response.matches.add()
        _fill_match(message, match, result.query, options)
        size_bytes += message.ByteSize()
        if size_bytes > MAX_ANSWER_BYTES:
            raise InvalidInput.of_field(
                "options.top_k",
                f"is too large: {len(response.matches):,} matches have {size_bytes:,} bytes; the limit is "
                f"{MAX_ANSWER_BYTES:,}. Ask for fewer, or omit texts or attributes",
            )
    return response


def result_from_proto(query: str, message: pb.MatchResponse) -> MatchResult:
    """The answer to one query.

    Args:
        query: or the id of the document that was given instead.
    """
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
        filter_warnings=tuple(message.filter_warnings),
        query_passage_count=message.query_passage_count or 1,
    )


async def batch_result_to_proto(
    query_index: int, result: MatchResult | TextMatchError, options: MatchOptions
) -> pb.BatchMatchResponse:
    """The answer to one query of many, or the error that it failed with."""
    if isinstance(result, TextMatchError):
        return pb.BatchMatchResponse(query_index=query_index, error=to_status(result))
    try:
        response = await result_to_proto(result, options)
    except InvalidInput as error:
        return pb.BatchMatchResponse(query_index=query_index, error=to_status(error))
    return pb.BatchMatchResponse(query_index=query_index, response=response)


def batch_result_from_proto(position: int, query: str, message: pb.BatchMatchResponse) -> BatchMatchResult:
    """The answer to the query at this position of the caller's list."""
    if message.HasField("error"):
        return BatchMatchResult(position, None, from_status(message.error))
    return BatchMatchResult(position, result_from_proto(query, message.response), None)


def _check_options(options: MatchOptions, prefix: str) -> None:
    limits = [
        ("top_k", options.top_k, 1, MAX_TOP_K),
        ("candidate_count", options.candidate_count, min(options.top_k, MAX_CANDIDATES), MAX_CANDIDATES),
        ("rerank_depth", options.rerank_depth, 0, options.candidate_count),
        ("min_score", options.min_score, 0, 1),
    ]
    violations: list[Violation | None] = [
        Violation.of_field(f"{prefix}{name}", f"is {value}; it must be {lowest:,} to {highest:,}")
        for name, value, lowest, highest in limits
        if not lowest <= value <= highest
    ]
    if options.group_by:
        violations.append(_path_violation(f"{prefix}group_by", options.group_by))
    if len(options.exclude_ids) > MAX_EXCLUDED_IDS:
        description = f"has {len(options.exclude_ids):,} ids; the limit is {MAX_EXCLUDED_IDS:,}"
        violations.append(Violation.of_field(f"{prefix}exclude_ids", description))
    else:
        violations += [
            id_violation(f"{prefix}exclude_ids[{position}]", one)
            for position, one in enumerate(options.exclude_ids)
        ]
    raise_violations(violations)


def _path_violation(name: str, path: str) -> Violation | None:
    """What is wrong with the path of an attribute, without brackets: "author.name"; None if it is valid."""
    if violation := text_violation(name, path, MAX_FIELD_BYTES):
        return Violation.of_field(name, violation.description)
    if any(not part or set(part) & set('"[]') for part in path.split(".")):
        return Violation.of_field(
            name, "must be parts joined by dots, none of them empty or with a double quote or a bracket"
        )
    return None


def _fill_match(message: pb.Match, match: Match, query: str, options: MatchOptions) -> None:
    document = match.document
    message.document.id = document.id
    message.document.version = document.version
    if not options.omit_text:
        message.document.text = document.text
    if document.attributes and not options.omit_attributes:
        documents.fill_struct(message.document.attributes, document.attributes)
    if document.passage is not None:
        message.passage.CopyFrom(_passage_to_proto(document.passage, message.document.text, match.score))
    if (part := match.query_passage) is not None:
        message.query_passage.CopyFrom(_passage_to_proto(part, query[part.start : part.end], match.score))
    message.score = match.score
    message.recall_score = match.recall_score
    if match.rerank_score is not None:
        message.rerank_score = match.rerank_score
    if match.explanation and options.explain:
        message.explanation.CopyFrom(_explanation_to_proto(match.explanation))


def _match_from_proto(message: pb.Match) -> Match:
    document = documents.from_proto(message.document)
    if message.HasField("passage"):
        document = replace(document, passage=_passage_from_proto(message.passage))
    return Match(
        document=document,
        score=message.score,
        recall_score=message.recall_score,
        rerank_score=message.rerank_score if message.HasField("rerank_score") else None,
        explanation=_explanation_from_proto(message.explanation) if message.HasField("explanation") else None,
        query_passage=_passage_from_proto(message.query_passage)
        if message.HasField("query_passage")
        else None,
    )


def _passage_to_proto(one: Passage, text: str, score: float) -> pb.Passage:
    return pb.Passage(text=text, start=one.start, end=one.end, number=one.number, score=score)


def _passage_from_proto(message: pb.Passage) -> Passage:
    return Passage(message.number, message.start, message.end)


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
