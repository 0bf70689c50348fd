from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from training.evaluation.bootstrap import Estimate
from training.model_card import FileMetrics, ModelCard, replace_section, thresholds_section, write_model_card


def _card(train: Path, dev: Path) -> ModelCard:
    figures = {"spearman": Estimate(0.5, 0.4, 0.6), "auc": Estimate(float("nan"), float("nan"), float("nan"))}
    return ModelCard(
        title="Siamese bi-encoder",
        tag="sentence-similarity",
        base_name="some/base",
        description="Turns texts into vectors.",
        data=[("rows", "64")],
        data_note="Ours.",
        limits=["It is small."],
        command="textmatch train siamese --seed 1",
        training_files=[train],
        evaluation=[FileMetrics(dev, 64, {"this model": figures, "char-tfidf": figures})],
    )


def test_a_card_has_data_command_environment_figures_and_limits(tmp_path: Path) -> None:
    train, dev = tmp_path / "train.tsv", tmp_path / "dev.tsv"
    train.write_text("a\tb\t1\n")
    dev.write_text("a\tb\t0\n")
    text = write_model_card(_card(train, dev), tmp_path).read_text()
    assert text.startswith('---\nbase_model: "some/base"\n')
    assert f"`{hashlib.sha256(train.read_bytes()).hexdigest()}`" in text
    assert f"64 pairs, SHA-256 `{hashlib.sha256(dev.read_bytes()).hexdigest()}`" in text
    assert "| | this model | char-tfidf |" in text
    assert "| spearman | 0.5000 (0.4000 to 0.6000) | 0.5000 (0.4000 to 0.6000) |" in text
    assert "| auc | – | – |" in text
    assert "    textmatch train siamese --seed 1\n" in text
    assert "| rows | 64 |" in text
    assert "* It is small." in text
    assert "torch " in text
    assert str(tmp_path.parent) not in text


def test_thresholds_are_listed_or_not_reached(tmp_path: Path) -> None:
    scores = np.linspace(0, 1, 40)
    section = thresholds_section(scores, scores > 0.5, tmp_path / "dev.tsv")
    assert "20 of its 40 pairs are positive" in section
    assert "| 0.95 | 0.4872 | 1.0000 |" in section
    assert "| 0.9 | not reached | |" in thresholds_section(scores, scores < 0.5, tmp_path / "dev.tsv")


def test_a_section_is_replaced_or_added(tmp_path: Path) -> None:
    replace_section(tmp_path, "Thresholds", "one")
    replace_section(tmp_path, "Calibration", r"\1 two")
    replace_section(tmp_path, "Thresholds", "three")
    whole = (tmp_path / "README.md").read_text()
    assert whole == f"# {tmp_path.name}\n\n## Thresholds\n\nthree\n\n## Calibration\n\n\\1 two\n"
