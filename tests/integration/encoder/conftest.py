from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from services.encoder.loading import load_models
from services.encoder.model_registry import ModelRegistry
from services.encoder.settings import EncoderSettings
from tests.support.encoder import make_tiny_bi_encoder, make_tiny_cross_encoder
from tests.support.encoder_server import EncoderServer, serve_encoder
from textmatch.models.calibration import PairClassifier


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models: a plain bi-encoder, one with prompts and a pair classifier, a cross-encoder."""
    base = tmp_path_factory.mktemp("models")
    directories = {
        "plain": make_tiny_bi_encoder(base / "plain"),
        "classified": make_tiny_bi_encoder(
            base / "classified", prompts={"query": "query: ", "document": "a "}
        ),
        "pairs": make_tiny_cross_encoder(base / "pairs"),
    }
    # Two classes, "other" and "same": the further apart two embeddings are, the more "other" they are.
    weight = np.zeros((2, 96), dtype=np.float32)
    weight[0, 64:] = 1.0
    PairClassifier(weight, np.array([0, 1], dtype=np.float32), (0.0, 1.0)).save(directories["classified"])
    return directories


@pytest.fixture(scope="session")
def models(model_directories: dict[str, Path]) -> ModelRegistry:
    settings = EncoderSettings(
        bi_encoder=f"{model_directories['plain']},{model_directories['classified']}",
        cross_encoder=str(model_directories["pairs"]),
        device="cpu",
        dtype="float32",
        threads=1,
    )
    return load_models(settings).models


@pytest.fixture
async def encoder(models: ModelRegistry) -> AsyncIterator[EncoderServer]:
    async with serve_encoder(models) as server:
        yield server
