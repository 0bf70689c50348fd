"""The losses and options of bi-encoders: orders of pairs, in-batch negatives, shorter embeddings, prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from textmatch.cli.__main__ import main
from textmatch.errors import InvalidInput
from textmatch.models.bi_encoder import TorchBiEncoder, feed_lstm
from training.regression import RegressionSettings, train_regression
from training.siamese import (
    CosentSettings,
    SbertSettings,
    SiameseSettings,
    train_cosent,
    train_sbert,
    train_siamese,
)
from training.simcse import SimcseSettings, train_simcse

QUIET = Console(quiet=True)
TEXTS = ["red cat", "small green bird sings", "old", "large tree runs blue dog"]


def _options(base: Path, train: Path, output: Path, **options: Any) -> dict[str, Any]:
    small = {"batch_size": 16, "max_length_tokens": 32, "learning_rate": 1e-3, "device": "cpu", "epochs": 3}
    return {"base": str(base), "train": [train], "output": output, **small, **options}


@pytest.mark.parametrize("loss", ["cosent", "angle"])
def test_the_order_of_scores_is_learnt(bases: dict[str, Path], scored: Path, tmp_path: Path, loss: Any):
    """Of scores of any range."""
    wide = tmp_path / "wide.tsv"
    rows = [line.split("\t") for line in scored.read_text().splitlines()]
    wide.write_text("".join(f"{first}\t{second}\t{5 * float(score):.3f}\n" for first, second, score in rows))
    options = _options(bases["bert"], wide, tmp_path / "model", dev=wide, score_range=(0.0, 5.0))
    result = train_cosent(CosentSettings(**options, loss=loss), QUIET)
    assert result.metrics[wide]["spearman"] > 0.5
    assert not result.is_start_kept


def test_siamese_reads_scores_of_any_range(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The guide sends graded pairs to it first, but it had no --score-range."""
    path = tmp_path / "graded.data"
    path.write_text("red cat\tred dog\t2\nold tree\told tree\t5\nblue\tsings\t0\nsmall bird\tbird\t4\n")
    words = ["train", "siamese", "--base", bases["bert"], "--train", path, "--device", "cpu"]
    words += ["--max-steps", 1, "--batch-size", 4, "--output", tmp_path / "model"]
    assert main(list(map(str, words))) == 1
    assert "score 2 is outside 0..1; for other scores use --score-range" in capsys.readouterr().err
    assert main([*map(str, words), "--score-range", "0", "5"]) == 0


@pytest.mark.parametrize("mini_batch_size", [0, 8])
def test_positive_pairs_are_learnt_with_the_negatives_of_their_batch(
    bases: dict[str, Path], binary: Path, scored: Path, tmp_path: Path, mini_batch_size: int
):
    """Without labels, and in mini batches: the same losses in less memory."""
    positives = tmp_path / "positives.tsv"
    rows = [line.split("\t") for line in binary.read_text().splitlines()]
    positives.write_text("".join(f"{first}\t{second}\n" for first, second, label in rows if label == "1"))
    options = _options(bases["bert"], positives, tmp_path / "model", held_out=[scored], epochs=10)
    settings = SiameseSettings(**options, loss="in-batch", mini_batch_size=mini_batch_size)
    assert train_siamese(settings, QUIET).metrics[scored]["spearman"] > 0.4
    wide = tmp_path / "wide.tsv"
    wide.write_text("red cat\told cat\t5\nred dog\told tree\t0\n")
    with pytest.raises(InvalidInput, match=r"score 5 is outside 0\.\.1"):
        train_siamese(
            SiameseSettings(**{**options, "train": [wide], "output": tmp_path / "no"}, loss="in-batch"), QUIET
        )
    labelled = _options(bases["bert"], binary, tmp_path / "other", max_steps=1)
    console = Console(width=200)
    with console.capture() as printed:
        train_siamese(SiameseSettings(**labelled, loss="in-batch"), console)
    count = sum(label == "1" for *_, label in rows)
    assert f"{count} of 64 pairs mean the same; the others are left out" in printed.get()


@pytest.mark.parametrize("label", ["1", "0"])
def test_pairs_of_one_label_are_refused(bases: dict[str, Path], tmp_path: Path, label: str):
    """Every text got the same embedding, and the run ended without a word."""
    path = tmp_path / "same.tsv"
    path.write_text(f"red cat\tred dog\t{label}\nold tree\told tree\t{label}.0\n")
    options = _options(bases["bert"], path, tmp_path / "model")
    for settings, train in (
        (SiameseSettings(**options), train_siamese),
        (CosentSettings(**options), train_cosent),
        (SbertSettings(**options), train_sbert),
        (RegressionSettings(**options), train_regression),
    ):
        with pytest.raises(InvalidInput, match=f'all pairs have the (score|class) "?{label}'):
            train(settings, QUIET)  # type: ignore[arg-type]
    assert not (tmp_path / "model").exists()


def test_short_embeddings_are_trained_and_measured(bases: dict[str, Path], scored: Path, tmp_path: Path):
    options = _options(bases["bert"], scored, tmp_path / "model", dev=scored, matryoshka="8, 4")
    result = train_cosent(CosentSettings(**options), QUIET)
    assert list(result.metrics[scored]) == ["spearman", "spearman of 8", "spearman of 4"]
    plain = train_cosent(
        CosentSettings(**{**options, "output": tmp_path / "plain", "matryoshka": "", "dev": None}), QUIET
    )
    assert plain.metrics == {}
    model = SentenceTransformer(str(tmp_path / "plain"), device="cpu", truncate_dim=4)
    assert model.encode(TEXTS).shape == (4, 4)
    assert result.metrics[scored]["spearman of 4"] > 0.3
    with pytest.raises(InvalidInput, match="64 is above the model's 32 dimensions"):
        train_cosent(CosentSettings(**{**options, "output": tmp_path / "no", "matryoshka": "64"}), QUIET)
    with pytest.raises(InvalidInput, match='"a,4" is not a list of whole numbers'):
        train_cosent(CosentSettings(**{**options, "output": tmp_path / "no", "matryoshka": "a,4"}), QUIET)
    with pytest.raises(InvalidInput, match="a classifier reads embeddings of one length"):
        train_sbert(SbertSettings(**{**options, "output": tmp_path / "no"}), QUIET)


def test_prompts_are_trained_with_and_saved(bases: dict[str, Path], binary: Path, tmp_path: Path):
    output = tmp_path / "model"
    prompts = {"query_prompt": "old tree ", "document_prompt": "blue "}
    train_siamese(SiameseSettings(**_options(bases["bert"], binary, output, **prompts)), QUIET)
    saved = json.loads((output / "config_sentence_transformers.json").read_text())["prompts"]
    assert saved == {"query": "old tree ", "document": "blue "}
    served = TorchBiEncoder.load(output, "trained")
    reference = SentenceTransformer(str(output), device="cpu")
    for is_query, encode in ((True, reference.encode_query), (False, reference.encode_document)):
        embedded = served.embed(served.tokenize(TEXTS, is_query=is_query))
        np.testing.assert_allclose(embedded, encode(TEXTS, show_progress_bar=False), atol=1e-5)


@pytest.mark.parametrize("lstm", ["lstm", "bilstm"])
def test_the_last_state_of_each_direction_is_the_embedding(
    bases: dict[str, Path], binary: Path, tmp_path: Path, lstm: Any
):
    output = tmp_path / "model"
    options = _options(bases["bert"], binary, output, pooling="last", epochs=1)
    train_siamese(SiameseSettings(**options, lstm=lstm, lstm_width=12, lstm_layers=2), QUIET)
    reference = SentenceTransformer(str(output), device="cpu")
    feed_lstm(reference)
    first, layers = reference[0], reference[1].encoder
    served = TorchBiEncoder.load(output, "trained")
    embedded = served.embed(served.tokenize(TEXTS, is_query=False))
    with torch.inference_mode():
        for text, found in zip(TEXTS, embedded, strict=True):
            states = first(reference.tokenize([text]))["token_embeddings"]
            last = layers(states)[1][0]  # (layer x direction, 1, width)
            # The backward half is the first one.
            expected = torch.cat([*last[-2:].flip(0)] if lstm == "bilstm" else [last[-1]], dim=1)[0]
            expected = torch.nn.functional.normalize(expected, dim=0).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_lstm_needs_textmatch_and_the_card_says_so(bases: dict[str, Path], binary: Path, tmp_path: Path):
    options = _options(bases["bert"], binary, tmp_path / "model", max_steps=1)
    train_siamese(SiameseSettings(**options, lstm="lstm", lstm_width=8), QUIET)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "feed_lstm(model)" in card
    train_siamese(SiameseSettings(**{**options, "output": tmp_path / "plain"}), QUIET)
    assert "feed_lstm" not in (tmp_path / "plain" / "README.md").read_text()


def test_each_encoding_of_a_sentence_finds_the_other(
    bases: dict[str, Path], sentences: Path, scored: Path, tmp_path: Path
):
    found = {}
    for both in (True, False):
        output = tmp_path / str(both)
        options = _options(bases["bert"], sentences, output, held_out=[scored], both_directions=both)
        found[both] = train_simcse(SimcseSettings(**options), QUIET).metrics[scored]["spearman"]
    assert found[True] != found[False]


def test_cross_entropy_trains_a_cross_encoder(bases: dict[str, Path], binary: Path, tmp_path: Path):
    options = _options(bases["bert"], binary, tmp_path / "model", dev=binary, epochs=8, bf16=False)
    result = train_regression(RegressionSettings(**options, warm_up_pairs=0, loss="bce"), QUIET)
    labels = [float(line.split("\t")[2]) for line in binary.read_text().splitlines()]
    assert result.metrics[binary]["mse"] < float(np.var(labels))
    with pytest.raises(InvalidInput, match="bce needs a sigmoid"):
        train_regression(
            RegressionSettings(**{**options, "output": tmp_path / "no"}, loss="bce", sigmoid=False), QUIET
        )


@pytest.mark.parametrize("library", ["tensorboard", "wandb"])
def test_a_library_that_is_not_installed_is_named(
    bases: dict[str, Path], binary: Path, tmp_path: Path, library: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.settings.importlib.util.find_spec", lambda _: None)
    options = _options(bases["bert"], binary, tmp_path / "model", report_to=library)
    with pytest.raises(InvalidInput, match=f"report-to: needs .* not installed: pip install {library}"):
        train_siamese(SiameseSettings(**options), QUIET)


def test_the_exporter_is_that_of_sentence_transformers(
    bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("training.model_files.importlib.util.find_spec", lambda _: None)
    assert main(["train", "export", str(bases["bert"]), str(tmp_path / "onnx")]) == 1
    assert "pip install sentence-transformers[onnx]" in capsys.readouterr().err


def test_an_adapter_finds_its_base_from_every_folder(
    bases: dict[str, Path], binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A relative --base was stored as it was typed."""
    monkeypatch.chdir(bases["bert"].parent)
    options = _options(Path("bert"), binary, tmp_path / "model", max_steps=2, adapter_rank=4)
    train_siamese(SiameseSettings(**options), QUIET)
    monkeypatch.chdir(tmp_path)
    assert TorchBiEncoder.load(tmp_path / "model", "trained").dimension == 32
