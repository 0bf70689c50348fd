"""The regression recipe end to end on a tiny BERT, and the cross-encoder that is shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sentence_transformers import CrossEncoder

from textmatch.errors import InvalidInput, ModelNotFound
from textmatch.models.calibration import Scores
from textmatch.models.lora import ADAPTER_WEIGHTS, load_cross_encoder_directory
from textmatch.models.model_resolver import BI_ENCODER_ORGANISATION, adapter_base_name, find_model
from training.examples import read_scored_pairs
from training.model_files import load_trained
from training.regression import RegressionSettings, train_regression

QUIET = Console(quiet=True)
SHIPPED = Path("textmatch/models/cross_encoder_en")
SHIPPED_LIMIT_BYTES = 4_000_000


def _settings(base: Path, pairs: Path, output: Path, adapter_rank: int) -> RegressionSettings:
    return RegressionSettings(
        train=[pairs],
        dev=pairs,
        output=output,
        base=str(base),
        adapter_rank=adapter_rank,
        warm_up_pairs=40,
        epochs=2,
        batch_size=16,
        max_length_tokens=32,
        bf16=False,
        device="cpu",
    )


def _scores(output: Path, base: Path, pairs: Path) -> Scores:
    texts = [(pair.first, pair.second) for pair in read_scored_pairs(pairs)]
    return np.asarray(load_trained(output, base, "cpu").predict(texts), dtype=np.float32)


@pytest.mark.parametrize("adapter_rank", [4, 0])
def test_what_is_saved_scores_as_what_was_measured(
    bases: dict[str, Path], scored: Path, tmp_path: Path, adapter_rank: int
):
    settings = _settings(bases["bert"], scored, tmp_path / "first", adapter_rank)
    result = train_regression(settings, QUIET)
    scores = _scores(settings.output, bases["bert"], scored)
    assert ((scores > 0) & (scores < 1)).all()
    gold = np.array([pair.score for pair in read_scored_pairs(scored)])
    assert float(np.mean((scores - gold) ** 2)) == pytest.approx(result.metrics[scored]["mse"], abs=1e-5)
    theirs = CrossEncoder(str(settings.output), device="cpu").predict(
        [(pair.first, pair.second) for pair in read_scored_pairs(scored)]
    )
    np.testing.assert_allclose(scores, theirs, atol=1e-5)
    assert f"--adapter-rank {adapter_rank}" in result.command or not adapter_rank
    assert str(tmp_path) not in result.command.replace(str(bases["bert"]), "")
    assert not [path for path in settings.output.rglob("*") if path.suffix == ".bin"]
    if adapter_rank:
        assert adapter_base_name(settings.output) == str(bases["bert"])


@pytest.mark.parametrize("adapter_rank", [4, 0])
def test_the_seed_decides_the_scores(bases: dict[str, Path], scored: Path, tmp_path: Path, adapter_rank: int):
    found = []
    for name in ("first", "second"):
        settings = _settings(bases["bert"], scored, tmp_path / name, adapter_rank)
        train_regression(settings, QUIET)
        found.append(_scores(settings.output, bases["bert"], scored))
    np.testing.assert_array_equal(found[0], found[1])


def test_another_model_may_label_the_warm_up(bases: dict[str, Path], scored: Path, tmp_path: Path):
    # More than a batch: the first step has the learning rate 0.
    settings = replace(
        # Without a dev file: a warm-up that does not help would be undone.
        _settings(bases["bert"], scored, tmp_path / "own", 4),
        warm_up_pairs=400,
        dev=None,
    )
    train_regression(settings, QUIET)
    other = replace(settings, output=tmp_path / "other", warm_up_labels=str(bases["roberta"]))
    train_regression(other, QUIET)
    own_scores, other_scores = (_scores(one.output, bases["bert"], scored) for one in (settings, other))
    assert not np.array_equal(own_scores, other_scores)
    missing = replace(settings, output=tmp_path / "third", warm_up_labels="nobody")
    with pytest.raises(ModelNotFound, match="nobody"):
        train_regression(missing, QUIET)


def test_adapters_are_for_bert_with_a_sigmoid(bases: dict[str, Path], scored: Path, tmp_path: Path):
    settings = _settings(bases["distilbert"], scored, tmp_path / "model", 4)
    with pytest.raises(InvalidInput, match="adapters are for BERT; .* is distilbert: use 0"):
        train_regression(settings, QUIET)
    with pytest.raises(InvalidInput, match="needs --adapter-rank 0"):
        train_regression(replace(settings, sigmoid=False), QUIET)


def test_an_adapter_without_safetensors_is_refused(bases: dict[str, Path], tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}', encoding="utf-8")
    (tmp_path / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelNotFound, match=ADAPTER_WEIGHTS):
        load_cross_encoder_directory(tmp_path, bases["bert"])


@pytest.mark.parametrize("shipped", [SHIPPED, Path("textmatch/models/bi_encoder_en")])
def test_shipped_directory_is_small_and_holds_no_pickle(shipped: Path):
    files = [path for path in shipped.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= SHIPPED_LIMIT_BYTES
    assert {path.suffix for path in files} <= {".json", ".md", ".safetensors"}
    assert adapter_base_name(shipped) == "sentence-transformers/all-MiniLM-L6-v2"
    tokenizer_config = json.loads((shipped / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in tokenizer_config


def _shipped_cross_encoder() -> CrossEncoder:
    base = find_model(adapter_base_name(SHIPPED), BI_ENCODER_ORGANISATION)
    return load_cross_encoder_directory(SHIPPED, base, device="cpu")


def test_shipped_cross_encoder_orders_obvious_pairs():
    model = _shipped_cross_encoder()
    scores = model.predict(
        [
            ("A man is playing a guitar.", "A man is playing a guitar."),
            ("A man is playing a guitar.", "Someone plays the guitar."),
            ("A man is playing a guitar.", "A man is playing the piano."),
            ("A man is playing a guitar.", "The stock market fell sharply on Monday."),
        ]
    )
    assert ((scores >= 0) & (scores <= 1)).all()
    assert list(scores) == sorted(scores, reverse=True)
    assert scores[0] > 0.9
    assert scores[-1] < 0.15


def test_shipped_cross_encoder_prefers_the_matching_description():
    model = _shipped_cross_encoder()
    query = "remove a directory and everything below it"
    descriptions = [
        "shutil rmtree: recursively delete a directory tree.",
        "os mkdir: create a directory.",
        "json loads: parse a JSON string.",
    ]
    scores = model.predict([(query, description) for description in descriptions])
    assert scores.argmax() == 0
    assert scores.argmin() == 2
