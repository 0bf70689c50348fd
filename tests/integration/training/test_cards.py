"""The model card that every run leaves, with figures of the saved model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training.evaluation.pairs import measure_on_pairs, read_pair_file
from training.evaluation.scorers import load_model_system
from training.mlm import MlmSettings, train_mlm
from training.model_card import sha256_of
from training.regression import RegressionSettings, train_regression
from training.settings import short_path
from training.siamese import SbertSettings, SiameseSettings, train_sbert, train_siamese

QUIET = Console(quiet=True)


def _options(base: Path, train: Path, output: Path) -> dict[str, Any]:
    small = {"batch_size": 16, "max_length_tokens": 32, "max_steps": 4, "device": "cpu"}
    return {"base": str(base), "train": [train], "dev": train, "output": output, **small}


@pytest.mark.parametrize("recipe", ["siamese", "regression"])
def test_a_card_has_the_served_metrics_next_to_the_baseline(
    bases: dict[str, Path], scored: Path, tmp_path: Path, recipe: str
) -> None:
    options = _options(bases["bert"], scored, tmp_path / "model")
    if recipe == "siamese":
        train_siamese(SiameseSettings(**options), QUIET)
    else:
        train_regression(RegressionSettings(**options, warm_up_pairs=0, bf16=False), QUIET)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| | this model | char-tfidf |" in card
    system = load_model_system(str(tmp_path / "model"), "cpu")
    (measured,) = measure_on_pairs(system, read_pair_file(scored))
    figure = re.search(r"\| mse \| (\d\.\d+)", card)
    assert figure is not None
    assert float(figure[1]) == pytest.approx(measured.metrics.values["mse"], abs=1e-4)
    assert "## Thresholds" in card
    assert f"textmatch train {recipe}" in card
    assert str(tmp_path) not in card
    assert str(bases["bert"]) not in card


def test_the_card_of_a_regression_names_what_it_warmed_up_with(
    bases: dict[str, Path], scored: Path, sentences: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "models" / "teacher"
    options = _options(bases["roberta"], scored, teacher)
    train_siamese(SiameseSettings(**options), QUIET)
    options = _options(bases["bert"], scored, tmp_path / "models" / "model")
    extra = {"warm_up_pairs": 20, "warm_up_sentences": [sentences], "warm_up_labels": str(teacher)}
    train_regression(RegressionSettings(**options, **extra, bf16=False), QUIET)
    card = (tmp_path / "models" / "model" / "README.md").read_text()
    assert f"| {short_path(sentences)} | `{sha256_of(sentences)}` |" in card
    assert "--warm-up-labels models/teacher" in card


def test_classes_and_perplexity_are_reported_as_the_recipe_measured_them(
    bases: dict[str, Path], classes: Path, sentences: Path, tmp_path: Path
) -> None:
    result = train_sbert(SbertSettings(**_options(bases["bert"], classes, tmp_path / "sbert")), QUIET)
    card = (tmp_path / "sbert" / "README.md").read_text()
    assert f"| accuracy | {result.metrics[classes]['accuracy']:.4f} |" in card
    assert "## Thresholds" not in card
    train_mlm(MlmSettings(**_options(bases["bert"], sentences, tmp_path / "mlm")), QUIET)
    assert "| perplexity |" in (tmp_path / "mlm" / "README.md").read_text()
