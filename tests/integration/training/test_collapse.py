"""Training and loading a model that gives the same score to everything."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY
from rich.console import Console
from transformers import BertModel, BertTokenizer
from typer.testing import CliRunner

from services.encoder.loading import load_models
from services.encoder.settings import EncoderSettings
from tests.support.encoder import make_tiny_bi_encoder, make_tiny_cross_encoder
from textmatch.models.collapse import PROBES
from training.__main__ import app
from training.fit import TrainingFailed
from training.regression import RegressionSettings, train_regression
from training.siamese import SiameseSettings, train_siamese

QUIET = Console(quiet=True)
_SPREAD = "textmatch_encoder_model_score_spread"


@pytest.fixture(scope="module")
def blind_base(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT, to which all tokens look the same."""
    directory = tmp_path_factory.mktemp("blind") / "bert"
    model = BertModel.from_pretrained(bases["bert"])
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.fill_(0.1)
        model.embeddings.position_embeddings.weight.zero_()
        model.embeddings.token_type_embeddings.weight[1] = model.embeddings.token_type_embeddings.weight[0]
    model.save_pretrained(directory)
    BertTokenizer.from_pretrained(bases["bert"]).save_pretrained(directory)
    return directory


def _options(base: Path, train: Path, output: Path, **options: Any) -> dict[str, Any]:
    small = {"batch_size": 16, "max_length_tokens": 32, "learning_rate": 1e-12, "device": "cpu", "epochs": 1}
    return {"base": str(base), "train": [train], "output": output, **small, **options}


def test_a_bi_encoder_whose_cosines_are_equal_is_not_saved(
    blind_base: Path, binary: Path, tmp_path: Path
) -> None:
    settings = SiameseSettings(**_options(blind_base, binary, tmp_path / "model"))
    with pytest.raises(TrainingFailed, match=r"the model collapsed: all \d+ scores are 1.0000 to 1.0000"):
        train_siamese(settings, QUIET)
    assert not settings.output.exists()
    assert list(settings.checkpoints.glob("checkpoint-*"))


def test_a_cross_encoder_whose_scores_are_equal_is_not_saved(
    blind_base: Path, scored: Path, tmp_path: Path
) -> None:
    options = _options(blind_base, scored, tmp_path / "model", warm_up_pairs=0, bf16=False)
    settings = RegressionSettings(**options)
    with pytest.raises(TrainingFailed, match=r"the model collapsed: all \d+ scores are"):
        train_regression(settings, QUIET)
    assert not settings.output.exists()


def test_a_loss_that_is_not_finite_ends_the_command_with_an_error(
    bases: dict[str, Path], binary: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    arguments = ["siamese", "--train", binary, "--output", output, "--base", bases["bert"], "--epochs", "500"]
    arguments += ["--learning-rate", "1e38", "--device", "cpu", "--batch-size", "16"]
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert isinstance(result.exception, TrainingFailed)
    assert "the model collapsed: the loss is nan at step 10." in str(result.exception)
    assert f'"{output}.checkpoints"' in str(result.exception)
    assert not output.exists()


def test_loading_reports_a_model_that_cannot_tell_texts_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blind, sighted = make_tiny_bi_encoder(tmp_path / "blind"), make_tiny_bi_encoder(tmp_path / "sighted")
    pairs = make_tiny_cross_encoder(tmp_path / "pairs")
    _blind(blind)
    settings = EncoderSettings(
        bi_encoder=f"{sighted},{blind}",
        cross_encoder=str(pairs),
        engine="torch",
        device="cpu",
        dtype="float32",
    )
    with caplog.at_level(logging.WARNING, "services.encoder.loading"):
        loaded = load_models(settings).models
    seeing, not_seeing = (entry.model.model_id for entry in loaded.bi_encoders)
    warned = {(vars(record)["model_id"], vars(record)["language"]) for record in caplog.records}
    assert {(not_seeing, language) for language in PROBES} <= warned
    assert (seeing, "en") not in warned
    spread = {
        model_id: REGISTRY.get_sample_value(_SPREAD, {"model_id": model_id, "language": "en"}) or 0.0
        for model_id in (seeing, not_seeing)
    }
    assert spread[not_seeing] < 1e-3 < spread[seeing]
    load_models(EncoderSettings(bi_encoder=str(sighted), cross_encoder="none", engine="torch", device="cpu"))
    assert REGISTRY.get_sample_value(_SPREAD, {"model_id": not_seeing, "language": "en"}) is None


def _blind(directory: Path) -> None:
    model = BertModel.from_pretrained(directory)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.fill_(0.1)
        model.embeddings.position_embeddings.weight.zero_()
    model.save_pretrained(directory)
