"""What a caller may ask of a match."""

from __future__ import annotations

from typing import TypedDict

from textmatch.client.results import Recall, Rerank
from textmatch.errors import InvalidInput, Violation
from textmatch.filters import Filter
from textmatch.v1 import error_reason_pb2
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire import filters

_MAX_RESULTS = 1_000
_DEFAULT_TOP_K = 10
_RECALL = {
    Recall.DENSE: pb.RECALL_MODE_DENSE,
    Recall.HYBRID: pb.RECALL_MODE_HYBRID,
    Recall.HYBRID_RRF: pb.RECALL_MODE_HYBRID_RRF,
}
_RERANK = {
    False: pb.RERANK_MODE_NONE,
    True: pb.RERANK_MODE_CROSS_ENCODER,
    Rerank.NONE: pb.RERANK_MODE_NONE,
    Rerank.CROSS_ENCODER: pb.RERANK_MODE_CROSS_ENCODER,
    Rerank.CASCADE: pb.RERANK_MODE_CASCADE,
}


class MatchOptions(TypedDict, total=False):
    """Options of `match` and `batch_match`; all may be left out.

    Attributes:
        top_k: how many matches at most, 1 to 1,000; 10 if left out.
        candidate_count: how many documents are recalled, `top_k` to 1,000; 100 if left out, or `top_k` if
            that is larger.
        where: only documents whose attributes fit.
        min_score: leaves out matches with a lower score, 0 to 1.
        recall: how they are found; the best that the collection has if left out.
        rerank: what scores them; False means nothing does, and True, as if left out, the cross-encoder.
        rerank_depth: how many of them are scored at most, the best first; the server's choice if left out.
        explain: True also returns what every score is made of.
        omit_text: True leaves the text out of the documents returned.
        omit_attributes: True leaves the attributes out of the documents returned.
    """

    top_k: int
    candidate_count: int
    where: Filter
    min_score: float
    recall: Recall
    rerank: Rerank | bool
    rerank_depth: int
    explain: bool
    omit_text: bool
    omit_attributes: bool


def to_proto(options: MatchOptions) -> pb.MatchOptions:
    """Checked options as a message.

    Raises:
        InvalidInput: naming every option that is out of its limits.
    """
    top_k = options.get("top_k", _DEFAULT_TOP_K)
    ranges = [
        ("top_k", top_k, 1, _MAX_RESULTS),
        ("candidate_count", options.get("candidate_count"), top_k, _MAX_RESULTS),
        ("rerank_depth", options.get("rerank_depth"), 0, options.get("candidate_count", _MAX_RESULTS)),
        ("min_score", options.get("min_score"), 0, 1),
    ]
    violations = [
        Violation(
            name,
            error_reason_pb2.ERROR_REASON_FIELD_INVALID,
            f"is {value}; it must be {lowest:,} to {highest:,}",
        )
        for name, value, lowest, highest in ranges
        if value is not None and not lowest <= value <= highest
    ]
    if violations:
        raise InvalidInput(violations)
    return pb.MatchOptions(
        top_k=top_k,
        candidate_count=options.get("candidate_count", 0),
        filter=filters.to_proto(options["where"], "where") if "where" in options else None,
        min_score=options.get("min_score", 0.0),
        recall=_RECALL[options["recall"]] if "recall" in options else pb.RECALL_MODE_UNSPECIFIED,
        rerank=_RERANK[options.get("rerank", True)],
        rerank_depth=options.get("rerank_depth", 0),
        explain=options.get("explain", False),
        omit_text=options.get("omit_text", False),
        omit_attributes=options.get("omit_attributes", False),
    )
