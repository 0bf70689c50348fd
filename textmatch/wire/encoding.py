"""Messages of EncoderService: enums, embeddings, scores and models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from textmatch import vectors
from textmatch.errors import NotReady
from textmatch.types import EncodeResult, ModelInfo, ModelKind, Role, Scorer, ScoreResult, Truncation
from textmatch.v1 import encoder_service_pb2 as pb

ROLES = {Role.QUERY: pb.ROLE_QUERY, Role.DOCUMENT: pb.ROLE_DOCUMENT}
SCORERS = {
    Scorer.CROSS_ENCODER: pb.SCORER_CROSS_ENCODER,
    Scorer.PAIR_CLASSIFIER: pb.SCORER_PAIR_CLASSIFIER,
    Scorer.COSINE: pb.SCORER_COSINE,
}
TRUNCATIONS = {
    Truncation.END: pb.TRUNCATION_END,
    Truncation.START: pb.TRUNCATION_START,
    Truncation.ERROR: pb.TRUNCATION_ERROR,
}
_KINDS = {
    pb.MODEL_KIND_BI_ENCODER: ModelKind.BI_ENCODER,
    pb.MODEL_KIND_CROSS_ENCODER: ModelKind.CROSS_ENCODER,
}


def priority(*, is_bulk: bool) -> pb.Priority.ValueType:
    """The priority of a call as an enum value."""
    return pb.PRIORITY_BULK if is_bulk else pb.PRIORITY_INTERACTIVE


def encode_result(responses: Sequence[pb.EncodeResponse]) -> EncodeResult:
    """The embeddings of consecutive chunks of texts.

    Raises:
        NotReady: the chunks were embedded by different models.
    """
    model_id = _only_model_id({response.model_id for response in responses})
    blocks = [vectors.unpack(response.embeddings, response.dimension) for response in responses]
    return EncodeResult(
        embeddings=np.concatenate(blocks),
        token_counts=tuple(count for response in responses for count in response.token_counts),
        truncated=tuple(flag for response in responses for flag in response.truncated),
        model_id=model_id,
    )


def score_result(responses: Sequence[pb.ScoreResponse]) -> ScoreResult:
    """The scores of consecutive chunks of pairs.

    Raises:
        NotReady: the chunks were scored by different models.
    """
    model_id = _only_model_id({response.model_id for response in responses})
    labels = tuple(responses[0].labels)
    class_scores = np.array([score for response in responses for score in response.class_scores], np.float32)
    return ScoreResult(
        scores=np.array([score for response in responses for score in response.scores], np.float32),
        raw_scores=np.array([score for response in responses for score in response.raw_scores], np.float32),
        truncated=tuple(flag for response in responses for flag in response.truncated),
        model_id=model_id,
        labels=labels,
        class_scores=class_scores.reshape(-1, len(labels)) if labels else None,
    )


def model_info(message: pb.Model) -> ModelInfo:
    """A model that the encoder serves."""
    return ModelInfo(
        model_id=message.model_id,
        name=message.name,
        kind=_KINDS.get(message.kind, ModelKind.OTHER),
        dimension=message.dimension,
        max_tokens=message.max_tokens,
        dtype=message.dtype,
        device=message.device,
        has_pair_classifier=message.has_pair_classifier,
        is_default=message.is_default,
        labels=tuple(message.labels),
    )


def _only_model_id(model_ids: set[str]) -> str:
    """Refuse results of two models, which occur if the encoder is updated between two chunks."""
    if len(model_ids) == 1:
        return model_ids.pop()
    raise NotReady(
        f"the encoder changed its model during the call ({', '.join(sorted(model_ids))}); call again"
    )
