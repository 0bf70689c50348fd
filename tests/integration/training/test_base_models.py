"""What training starts from, and what of it is trained: base model, pair scorer, warm-up, word embeddings."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file
from sentence_transformers import CrossEncoder

from textmatch.cli.__main__ import main
from textmatch.errors import InvalidInput
from textmatch.models.lora import load_cross_encoder_directory
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    ENGLISH_BI_ENCODER,
    ENGLISH_CROSS_ENCODER,
    MINI_LM,
    find_model,
)
from training.regression import RegressionSettings, train_regression
from training.siamese import SiameseSettings, train_siamese

QUIET = Console(quiet=True)
PAIRS = [("red cat", "a cat that is red"), ("red cat", "the stock market fell"), ("old tree", "a young tree")]


def _options(train: Path, output: Path, **options: Any) -> dict[str, Any]:
    return {"train": [train], "output": output, "max_steps": 2, "device": "cpu", **options}


def _word_embeddings(directory: Path) -> np.ndarray[Any, Any]:
    [found] = [
        tensor
        for name, tensor in load_file(directory / "model.safetensors").items()
        if name.endswith("embeddings.word_embeddings.weight")
    ]
    return np.asarray(found)


def test_without_a_base_the_language_chooses_one_and_the_card_names_it(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "model"
    command = ["train", "siamese", "--train", str(scored), "--output", str(output), "--max-steps", "2"]
    threads = torch.get_num_threads()
    try:
        assert main([*command, "--device", "cpu", "--threads", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert f"base: {MINI_LM}, since 100.0% of the letters are ASCII" in capsys.readouterr().err
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"--base {MINI_LM}" in card
    assert "PyTorch threads: 1" in card


@pytest.mark.parametrize(("is_asked", "is_frozen"), [(True, True), (False, False), (None, False)])
def test_word_embeddings_stay_as_they_are_if_asked(
    bases: dict[str, Path], scored: Path, tmp_path: Path, is_asked: bool | None, is_frozen: bool
):
    base = str(bases["bert"])
    # The first step has the learning rate 0.
    options = _options(scored, tmp_path / "model", base=base, freeze_embeddings=is_asked, max_steps=4)
    train_siamese(SiameseSettings(**options), QUIET)
    is_same = np.array_equal(_word_embeddings(bases["bert"]), _word_embeddings(tmp_path / "model"))
    assert is_same == is_frozen


def test_many_word_embeddings_are_frozen_on_a_cpu(
    bases: dict[str, Path], scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.base_models._MANY_EMBEDDINGS", 10)
    base = str(bases["bert"])
    train_siamese(SiameseSettings(**_options(scored, tmp_path / "model", base=base, max_steps=4)), QUIET)
    np.testing.assert_array_equal(_word_embeddings(bases["bert"]), _word_embeddings(tmp_path / "model"))


def test_regression_starts_from_the_built_in_pair_scorer(scored: Path, tmp_path: Path):
    console = Console(file=io.StringIO(), width=200)
    options = _options(scored, tmp_path / "model", base=MINI_LM, learning_rate=1e-9, bf16=False)
    train_regression(RegressionSettings(**options), console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"starts from {ENGLISH_CROSS_ENCODER}, a pair scorer over {MINI_LM}" in printed
    adapter = find_model(ENGLISH_CROSS_ENCODER, BI_ENCODER_ORGANISATION)
    shipped = load_cross_encoder_directory(
        adapter, find_model(MINI_LM, BI_ENCODER_ORGANISATION), device="cpu"
    )
    trained = CrossEncoder(str(tmp_path / "model"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(trained.predict(PAIRS), shipped.predict(PAIRS), atol=1e-4)


def test_only_a_pair_scorer_over_the_base_can_be_the_start(
    bases: dict[str, Path], scored: Path, tmp_path: Path
):
    options = _options(scored, tmp_path / "model", bf16=False)
    with pytest.raises(InvalidInput, match="is not an adapter of a cross-encoder"):
        train_regression(RegressionSettings(**options, base=MINI_LM, start_adapter=ENGLISH_BI_ENCODER), QUIET)
    with pytest.raises(InvalidInput, match="is of another base model"):
        train_regression(
            RegressionSettings(**options, base=str(bases["bert"]), start_adapter=ENGLISH_CROSS_ENCODER), QUIET
        )


def test_a_warm_up_that_does_not_help_is_undone(bases: dict[str, Path], scored: Path, tmp_path: Path):
    good = RegressionSettings(
        **_options(scored, tmp_path / "good", base=str(bases["bert"]), bf16=False, learning_rate=1e-3)
        | {"max_steps": 0, "epochs": 20, "dev": scored}
    )
    train_regression(good, QUIET)
    console = Console(file=io.StringIO(), width=200)
    warmed = replace(
        good,
        base=str(good.output),
        output=tmp_path / "warmed",
        warm_up_pairs=400,
        # A random model's opinion.
        warm_up_labels=str(bases["roberta"]),
        warm_up_learning_rate=3e-3,
        learning_rate=1e-9,
        max_steps=2,
        epochs=1,
    )
    train_regression(warmed, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the warm-up does not help this model: training starts without it" in printed
    scores = [
        CrossEncoder(str(one.output), device="cpu", local_files_only=True).predict(PAIRS)
        for one in (good, warmed)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
