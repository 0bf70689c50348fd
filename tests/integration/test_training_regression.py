"""The regression recipe end to end on a tiny BERT, and the cross-encoder that is shipped."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertModel, BertTokenizerFast

from textmatch.errors import InvalidInput, ModelNotFound
from textmatch.models.adapter import ADAPTER_WEIGHTS, adapter_base_name, load_cross_encoder_directory
from textmatch.models.resolve import BI_ENCODER_ORGANISATION, find_model
from training.__main__ import main
from training.evaluation.comparison import cross_encoder_scores
from training.pairs import read_scored_pairs
from training.regression import RegressionSettings, load_trained, train_regression

SHIPPED = Path("textmatch/models/default_cross_encoder")
SHIPPED_LIMIT_BYTES = 4_000_000
WORDS = ["red", "green", "blue", "small", "large", "old", "cat", "dog", "bird", "tree", "runs", "sings"]


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random one-layer BERT over a vocabulary of twelve words."""
    directory = tmp_path_factory.mktemp("tiny_base")
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(directory)
    BertTokenizerFast(vocab_file=str(vocabulary), model_max_length=64).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def pair_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pairs of three words each, scored by the share of words in common."""
    chance = random.Random(0)
    lines = []
    for _ in range(60):
        kept = chance.randint(0, 3)
        first, second = chance.sample(WORDS, 3), chance.sample(WORDS, 3)
        second[:kept] = first[:kept]
        shared = len(set(first) & set(second)) / 3
        lines.append(f"{' '.join(first)}\t{' '.join(second)}\t{shared:.4f}\n")
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _settings(base: Path, pairs: Path, output: Path, adapter_rank: int) -> RegressionSettings:
    return RegressionSettings(
        train=pairs,
        dev=pairs,
        output=output,
        base_name="tiny/base",
        base=base,
        adapter_rank=adapter_rank,
        warm_up_pairs=40,
        epochs=2,
        batch_size=16,
        max_length_tokens=32,
        bf16=False,
        device="cpu",
    )


@pytest.mark.parametrize("adapter_rank", [4, 0])
def test_what_is_saved_scores_as_what_was_measured(
    tiny_base: Path, pair_file: Path, tmp_path: Path, adapter_rank: int
) -> None:
    settings = _settings(tiny_base, pair_file, tmp_path / "first", adapter_rank)
    (measured,) = train_regression(settings)
    again = load_trained(settings.output, tiny_base, "cpu")

    pairs = read_scored_pairs(pair_file)
    scores = cross_encoder_scores(again, pairs)
    assert scores.shape == (60,)
    assert (scores > 0).all()
    assert (scores < 1).all()
    gold = np.array([pair.score for pair in pairs])
    assert float(np.mean((scores - gold) ** 2)) == pytest.approx(measured.cross_encoder.mse, abs=1e-5)

    card = (settings.output / "README.md").read_text(encoding="utf-8")
    assert f"--adapter-rank {adapter_rank}" in card
    assert str(tmp_path) not in card
    assert not list(settings.output.rglob("*.bin"))
    if adapter_rank:
        assert adapter_base_name(settings.output) == "tiny/base"


@pytest.mark.parametrize("adapter_rank", [4, 0])
def test_plain_sentence_transformers_gives_the_same_scores(
    tiny_base: Path, pair_file: Path, tmp_path: Path, adapter_rank: int
) -> None:
    settings = replace(
        _settings(tiny_base, pair_file, tmp_path / "model", adapter_rank), base_name=str(tiny_base)
    )
    train_regression(settings)
    pairs = read_scored_pairs(pair_file)
    ours = cross_encoder_scores(load_trained(settings.output, tiny_base, "cpu"), pairs)
    theirs = cross_encoder_scores(CrossEncoder(str(settings.output), device="cpu"), pairs)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("adapter_rank", [4, 0])
def test_the_seed_decides_the_scores(
    tiny_base: Path, pair_file: Path, tmp_path: Path, adapter_rank: int
) -> None:
    pairs = read_scored_pairs(pair_file)
    scores = []
    for name in ("first", "second"):
        settings = _settings(tiny_base, pair_file, tmp_path / name, adapter_rank)
        train_regression(settings)
        scores.append(cross_encoder_scores(load_trained(settings.output, tiny_base, "cpu"), pairs))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_training_moves_the_scores_towards_gold(tiny_base: Path, pair_file: Path, tmp_path: Path) -> None:
    settings = _settings(tiny_base, pair_file, tmp_path / "model", 0)
    (measured,) = train_regression(settings)
    gold = np.array([pair.score for pair in read_scored_pairs(pair_file)])
    # An untrained head says about 0.5 to everything.
    assert measured.cross_encoder.mse < float(np.mean((0.5 - gold) ** 2))


def test_an_output_directory_in_use_is_refused(tiny_base: Path, pair_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidInput, match="is not empty"):
        train_regression(_settings(tiny_base, pair_file, tmp_path, 4))


def test_command_line_trains_and_measures(
    tiny_base: Path,
    pair_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = str(tmp_path / "model")
    files = ["--train", str(pair_file), "--dev", str(pair_file), "--warm-up-sentences", str(pair_file)]
    sizes = ["--warm-up-pairs", "20", "--epochs", "1", "--adapter-rank", "2", "--no-bf16"]
    base = ["--base", str(tiny_base), "--device", "cpu"]
    printed = []
    for arguments in (
        ["regression", *files, *sizes, *base, "--output", output],
        ["evaluate-pairs", output, str(pair_file), *base],
    ):
        monkeypatch.setattr(sys, "argv", ["training", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 0
        printed.append(capsys.readouterr().out[-220:].splitlines()[-2:])
    assert printed[0] == printed[1]
    assert printed[0][0].startswith("  cross-encoder  Spearman ")


def test_command_line_names_a_bad_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a\tb\t0.5\na\tb\t7\n", encoding="utf-8")
    options = ["--train", str(pairs), "--dev", str(pairs), "--output", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", ["training", "regression", *options])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    assert capsys.readouterr().err == f"error: {pairs} line 2 column 3: score 7 is outside 0..1\n"


def test_an_adapter_without_safetensors_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}', encoding="utf-8")
    (tmp_path / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelNotFound, match=ADAPTER_WEIGHTS):
        load_cross_encoder_directory(tmp_path, tiny_base)


def test_shipped_directory_is_small_and_holds_no_pickle() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= SHIPPED_LIMIT_BYTES
    assert {path.suffix for path in files} <= {".json", ".md", ".safetensors"}
    assert adapter_base_name(SHIPPED) == "sentence-transformers/all-MiniLM-L6-v2"
    tokenizer_config = json.loads((SHIPPED / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in tokenizer_config


def _shipped_cross_encoder() -> CrossEncoder:
    base = find_model(adapter_base_name(SHIPPED), BI_ENCODER_ORGANISATION)
    return load_cross_encoder_directory(SHIPPED, base, device="cpu")


def test_shipped_cross_encoder_orders_obvious_pairs() -> None:
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


def test_shipped_cross_encoder_prefers_the_matching_description() -> None:
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
