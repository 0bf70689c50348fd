"""An encoder in this process, for tests that need no model: texts are near if they share words."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import grpc
import numpy as np
import pytest

from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from textmatch import vectors
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.vectors import Embeddings

DIMENSION = 64


class QuickEncoder(ScriptedEncoder):
    """Embeds the words of a text, and scores pairs by the share of words that both have."""

    def __init__(self) -> None:
        super().__init__("quick-0123456789ab")

    def kill(self) -> None:
        """Stop answering."""
        self.stop()

    def Score(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> pb.ScoreResponse:  # noqa: N802
        pairs = [(request.query, text) for text in request.texts]
        pairs += [(pair.first, pair.second) for pair in request.pairs]
        scores = [_score(*pair) for pair in pairs]
        return pb.ScoreResponse(
            scores=scores,
            raw_scores=scores,
            truncated=[False] * len(scores),
            model_id="quick-pair-0123456789ab",
        )

    def _embedding(self, text: str) -> Embeddings:
        # The order of words counts a little, so that few cosines are equal.
        words = text.split()[: self.max_tokens]
        rows = [_word(word) * (1 + place / 100) for place, word in enumerate(words)]
        return vectors.normalise(np.sum(rows, axis=0)[None])[0]

    def _encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        counts = [len(text.split()) for text in request.texts]
        return pb.EncodeResponse(
            embeddings=vectors.pack(np.stack([self._embedding(text) for text in request.texts])),
            dimension=DIMENSION,
            token_counts=[min(count, self.max_tokens) for count in counts],
            truncated=[count > self.max_tokens for count in counts],
            model_id=self.model_id,
        )


@cache
def _word(word: str) -> Embeddings:
    seed = int.from_bytes(word.encode()[:8].ljust(8, b" "))
    vector: Embeddings = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
    return vector


def _score(first: str, second: str) -> float:
    one, other = set(first.split()), set(second.split())
    return 0.05 + 0.9 * len(one & other) / len(one | other)


@pytest.fixture
def quick() -> Iterator[QuickEncoder]:
    started = QuickEncoder()
    started.start()
    yield started
    started.stop()
