"""The methods of EncoderService as a test sets them, without a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from textmatch import vectors
from textmatch.errors import InvalidInput, Violation, raise_violations
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc
from textmatch.v1 import error_reason_pb2

DIMENSION = 4


class ScriptedEncoder(pb_grpc.EncoderServiceServicer):
    """Embeds a text by its length; scores a pair by its lengths."""

    def __init__(self, max_texts: int = 8) -> None:
        self.max_texts = max_texts
        self.scale = 1.0
        self.batch_sizes: list[int] = []
        self.priorities: set[int] = set()
        self.model_ids: deque[str] = deque()
        # Classes of pairs: the first has the score as its probability, the others share the rest.
        self.labels: tuple[str, ...] = ()
        self.truncations: list[int] = []

    async def Encode(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:
        self._take(len(request.texts), request.priority)
        if "poison" in request.texts:
            field = f"texts[{list(request.texts).index('poison')}]"
            failed = error_reason_pb2.ERROR_REASON_TEXT_FAILED
            raise InvalidInput([Violation(field, failed, "the model failed on it")])
        self._refuse_long(request.truncate, request.texts)
        lengths = np.array([[len(text) * self.scale] * DIMENSION for text in request.texts], np.float32)
        if request.HasField("normalize") and not request.normalize:
            lengths *= -1
        return pb.EncodeResponse(
            embeddings=vectors.pack(lengths),
            dimension=DIMENSION,
            token_counts=[len(text.split()) for text in request.texts],
            truncated=[len(text) > 100 for text in request.texts],
            model_id=self.model_ids.popleft() if self.model_ids else "tiny-0123456789ab",
        )

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        pairs = [(pair.first, pair.second) for pair in request.pairs]
        pairs = pairs or [(request.query, text) for text in request.texts]
        self._take(len(pairs), request.priority)
        self._refuse_long(request.truncate, request.texts)
        scores = [min(len(a), len(b)) / max(len(a), len(b)) for a, b in pairs]
        others = len(self.labels) - 1
        return pb.ScoreResponse(
            scores=scores,
            raw_scores=[2 * score for score in scores],
            truncated=[False] * len(scores),
            model_id="pair-0123456789ab",
            labels=self.labels,
            class_scores=[
                score if position == 0 else (1 - score) / others
                for score in scores
                for position in range(len(self.labels))
            ],
        )

    async def GetModels(self, request: pb.GetModelsRequest, context: Any) -> pb.GetModelsResponse:
        model = pb.Model(
            model_id="tiny-0123456789ab",
            name="tiny",
            kind=pb.MODEL_KIND_BI_ENCODER,
            dimension=DIMENSION,
            max_tokens=256,
            dtype="float32",
            device="cpu",
            is_default=True,
        )
        limits = pb.Limits(max_texts=self.max_texts, max_text_bytes=1_000)
        return pb.GetModelsResponse(models=[model], limits=limits)

    def _refuse_long(self, truncation: int, texts: Iterable[str]) -> None:
        self.truncations.append(truncation)
        if truncation == pb.TRUNCATION_ERROR:
            too_large = error_reason_pb2.ERROR_REASON_TEXT_TOO_LARGE
            raise_violations(
                Violation(f"texts[{at}]", too_large, f"has {len(text)} tokens; the model reads 100")
                if len(text) > 100
                else None
                for at, text in enumerate(texts)
            )

    def _take(self, count: int, priority: int) -> None:
        self.batch_sizes.append(count)
        self.priorities.add(priority)
        if count > self.max_texts:
            raise InvalidInput.of_field("texts", f"has {count} items; the limit is {self.max_texts}")
