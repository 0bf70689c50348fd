"""A model without weights for tests of what happens around models: a text's row is its length in tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.encoder.jobs import EngineModel, Rows
from textmatch.models.tokens import TokenizedText

SAMPLE = TokenizedText(ids=[1], type_ids=None, truncated=False, is_query=False)


def texts_of(*token_counts: int) -> list[TokenizedText]:
    """Texts with so many tokens; each token is the text's own length."""
    return [TokenizedText([count] * count, None, truncated=False, is_query=False) for count in token_counts]


class LengthModel:
    """Answers each text with its length; notes the batches it got."""

    def __init__(self, model_id: str = "length") -> None:
        self.batches: list[list[int]] = []
        self.engine_model = EngineModel(model_id, self.forward, SAMPLE)

    def forward(self, batch: Sequence[TokenizedText]) -> Rows:
        self.batches.append([text.token_count for text in batch])
        return np.array([[text.token_count] for text in batch], dtype=np.float32)
