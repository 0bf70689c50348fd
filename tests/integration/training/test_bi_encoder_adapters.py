"""Bi-encoders that are trained and saved as a small adapter over their base model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from textmatch.errors import InvalidInput, ModelNotFound
from textmatch.models.bi_encoder import read_bi_encoder
from textmatch.models.lora import ADAPTER_WEIGHTS
from textmatch.models.model_resolver import MULTILINGUAL_E5, adapter_base_name, model_id
from training.evaluation.scorers import is_cross_encoder
from training.siamese import SiameseSettings, train_siamese
from training.simcse import SimcseSettings, train_simcse

QUIET = Console(quiet=True)
TEXTS = ["red cat", "small green bird sings", "old"]


@pytest.fixture(scope="module")
def settings(
    bases: dict[str, Path], triples: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimcseSettings:
    return SimcseSettings(
        train=[triples],
        output=tmp_path_factory.mktemp("adapters") / "model",
        base=str(bases["bert"]),
        hard_negatives=True,
        adapter_rank=4,
        epochs=4,
        batch_size=16,
        max_length_tokens=32,
        learning_rate=1e-2,
        device="cpu",
    )


@pytest.fixture(scope="module")
def adapter(settings: SimcseSettings) -> Path:
    train_simcse(settings, QUIET)
    return settings.output


def test_an_adapter_is_small_and_changes_what_its_base_says(adapter: Path, bases: dict[str, Path]):
    assert (adapter / ADAPTER_WEIGHTS).stat().st_size < 0.3 * (
        bases["bert"] / "model.safetensors"
    ).stat().st_size
    assert not (adapter / "model.safetensors").exists()
    assert not is_cross_encoder(adapter)
    trained, base = read_bi_encoder(adapter, "adapter"), read_bi_encoder(bases["bert"], "base")
    assert trained.max_seq_length == 32
    own, before = (
        model.encode(TEXTS, normalize_embeddings=True, convert_to_numpy=True) for model in (trained, base)
    )
    assert np.abs(own - before).max() > 0.01
    assert model_id("m", adapter) != model_id("m", bases["bert"])


def test_training_goes_on_from_an_adapter(adapter: Path, settings: SimcseSettings, tmp_path: Path):
    result = train_simcse(
        replace(settings, base=str(adapter), adapter_rank=0, max_steps=2, output=tmp_path / "whole"), QUIET
    )
    assert (result.output / "model.safetensors").is_file()


def test_the_multilingual_base_takes_an_adapter(scored: Path, tmp_path: Path):
    result = train_siamese(
        SiameseSettings(
            train=[scored],
            base=MULTILINGUAL_E5,
            output=tmp_path / "model",
            adapter_rank=1,
            max_steps=1,
            batch_size=2,
            device="cpu",
        ),
        QUIET,
    )
    assert "| tokens unknown to the model | 0.0% |" in (result.output / "README.md").read_text()
    assert adapter_base_name(result.output) == MULTILINGUAL_E5
    assert read_bi_encoder(result.output, "m").get_embedding_dimension() == 384


def test_what_an_adapter_cannot_hold_is_refused(
    settings: SimcseSettings, bases: dict[str, Path], scored: Path, tmp_path: Path
):
    with pytest.raises(InvalidInput, match="adapters are for BERT; .* is roberta: use 0"):
        train_simcse(replace(settings, base=str(bases["roberta"]), output=tmp_path / "a"), QUIET)
    with pytest.raises(InvalidInput, match="uses the pooling of its base model"):
        train_simcse(replace(settings, pooling="cls", output=tmp_path / "b"), QUIET)
    lstm = SiameseSettings(
        train=[scored], base=settings.base, output=tmp_path / "c", adapter_rank=4, lstm="lstm", device="cpu"
    )
    with pytest.raises(InvalidInput, match="one tower and no LSTM"):
        train_siamese(lstm, QUIET)


def test_an_adapter_without_its_weights_is_refused(adapter: Path, tmp_path: Path):
    for name in ("adapter_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((adapter / name).read_bytes())
    with pytest.raises(ModelNotFound, match=ADAPTER_WEIGHTS):
        read_bi_encoder(tmp_path, "adapter")
