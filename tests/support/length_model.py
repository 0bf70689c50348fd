"""A model without weights, for tests of the code around models: the row of a text is its length in tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from services.encoder.batching import BatchPolicy, EngineModel, Rows
from services.encoder.model_registry import ModelRegistry, RegistryEntry
from textmatch.models.calibration import CosineScorer
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.types import Truncation

SAMPLE = TokenizedText(ids=[1], type_ids=None, truncated=False, is_query=False)
_BREAKING, _SLOW = "break", "slow"


def texts_of(*token_counts: int) -> list[TokenizedText]:
    """One text for each count, with so many tokens."""
    return [TokenizedText([1] * count, None, truncated=False, is_query=False) for count in token_counts]


class LengthModel:
    """Returns the length of each text; records the batches that it gets.

    Its tokens are characters. The text "break" breaks it for good, "slow" takes half a second.
    """

    dimension, max_tokens, dtype, device, engine = 1, 64, "float32", "cpu", "none"
    cosine, pair_classifier = CosineScorer(), None

    def __init__(self, model_id: str = "length") -> None:
        self.name = self.model_id = model_id
        self.batches: list[list[int]] = []
        self.engine_model = EngineModel(model_id, self.forward, SAMPLE)
        self._is_broken = False

    def tokenize(
        self, texts: Sequence[str], *, is_query: bool, truncation: Truncation | None = None
    ) -> list[TokenizedText]:
        return [
            TokenizedText([ord(character) for character in text], None, False, is_query) for text in texts
        ]

    def forward(self, batch: Sequence[TokenizedText]) -> Rows:
        texts = ["".join(map(chr, text.ids)) for text in batch]
        self._is_broken = self._is_broken or _BREAKING in texts
        if self._is_broken:
            raise RuntimeError("broken")
        if _SLOW in texts:
            time.sleep(0.5)
        self.batches.append([text.token_count for text in batch])
        return np.array([[text.token_count] for text in batch], dtype=np.float32)


def loaded_length_model() -> SimpleNamespace:
    """As services.encoder.loading.load_models returns it."""
    model = LengthModel()
    return SimpleNamespace(
        models=ModelRegistry([RegistryEntry(model, model.engine_model)], []),
        policy=BatchPolicy(1024, 0.1, 64),
        prepare_thread=lambda: None,
    )
