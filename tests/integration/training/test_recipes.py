"""Each recipe from a file to a directory, and what the encoder's own code makes of that directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from textmatch.errors import InvalidInput
from textmatch.models.bi_encoder import TorchBiEncoder, feed_lstm
from textmatch.models.cross_encoder import TorchCrossEncoder
from textmatch.vectors import Embeddings
from training.mlm import MlmSettings, train_mlm
from training.regression import RegressionSettings, train_regression
from training.siamese import SbertSettings, SiameseSettings, train_sbert, train_siamese
from training.simcse import SimcseSettings, train_simcse

TEXTS = ["red cat", "small green bird sings", "old", "large tree runs blue dog"]
QUIET = Console(quiet=True)
KINDS = ["bert", "albert", "roberta", "distilbert"]


def _options(base: Path, train: Path, output: Path, **options: Any) -> dict[str, Any]:
    small = {"batch_size": 16, "max_length_tokens": 32, "learning_rate": 1e-3, "device": "cpu"}
    return {"base": str(base), "train": [train], "output": output, **small, **options}


def _served(output: Path) -> TorchBiEncoder:
    return TorchBiEncoder.load(output, "trained")


def _embed(model: TorchBiEncoder, texts: list[str], *, is_query: bool) -> Embeddings:
    return model.embed(model.tokenize(texts, is_query=is_query))


def _reference(output: Path) -> SentenceTransformer:
    model = SentenceTransformer(str(output), device="cpu", local_files_only=True)
    feed_lstm(model)
    return model.eval()


def _assert_served_as_trained(output: Path) -> None:
    served, reference = _served(output), _reference(output)
    queries = np.asarray(reference.encode_query(TEXTS, show_progress_bar=False))
    documents = np.asarray(reference.encode_document(TEXTS, show_progress_bar=False))
    np.testing.assert_allclose(_embed(served, TEXTS, is_query=True), queries, atol=1e-5)
    np.testing.assert_allclose(_embed(served, TEXTS, is_query=False), documents, atol=1e-5)
    assert not [path for path in output.rglob("*") if path.suffix in (".bin", ".pt", ".py")]


@pytest.mark.parametrize("kind", KINDS)
def test_siamese_trains_every_kind_of_model(bases: dict[str, Path], binary: Path, tmp_path: Path, kind: str):
    output = tmp_path / "model"
    options = _options(bases[kind], binary, output, dev=binary, epochs=3)
    result = train_siamese(SiameseSettings(**options), QUIET)
    assert result.metrics[binary]["spearman"] > 0.5
    assert not output.with_name("model.checkpoints").exists()
    _assert_served_as_trained(output)


@pytest.mark.parametrize("lstm", ["lstm", "bilstm"])
def test_siamese_with_an_lstm(bases: dict[str, Path], scored: Path, tmp_path: Path, lstm: Any):
    output = tmp_path / "model"
    options = _options(bases["bert"], scored, output, dev=scored, epochs=3)
    settings = SiameseSettings(**options, lstm=lstm, lstm_width=24, lstm_layers=2)
    result = train_siamese(settings, QUIET)
    assert _served(output).dimension == (48 if lstm == "bilstm" else 24)
    assert result.metrics[scored]["spearman"] > 0.3
    _assert_served_as_trained(output)


def test_separate_towers_embed_queries_and_documents_differently(
    bases: dict[str, Path], binary: Path, tmp_path: Path
):
    output = tmp_path / "model"
    options = _options(bases["bert"], binary, output, dev=binary, epochs=3)
    train_siamese(SiameseSettings(**options, towers="separate", lstm="bilstm", lstm_width=16), QUIET)
    _assert_served_as_trained(output)
    model = _served(output)
    queries, documents = (_embed(model, TEXTS, is_query=is_query) for is_query in (True, False))
    assert np.abs(queries - documents).max() > 0.01


def test_online_contrastive_wants_two_labels(
    bases: dict[str, Path], scored: Path, binary: Path, tmp_path: Path
):
    options = _options(bases["bert"], binary, tmp_path / "model", dev=binary, epochs=2)
    result = train_siamese(SiameseSettings(**options, loss="online-contrastive"), QUIET)
    assert result.metrics[binary]["spearman"] > 0.3
    wrong = _options(bases["bert"], scored, tmp_path / "other")
    with pytest.raises(InvalidInput, match="online-contrastive needs labels that are 0 or 1"):
        train_siamese(SiameseSettings(**wrong, loss="online-contrastive"), QUIET)


@pytest.mark.parametrize("kind", KINDS)
def test_sbert_saves_the_classifier_with_the_model(
    bases: dict[str, Path], classes: Path, tmp_path: Path, kind: str
):
    output = tmp_path / "model"
    options = _options(bases[kind], classes, output, dev=classes, epochs=20)
    result = train_sbert(SbertSettings(**options), QUIET)
    _assert_served_as_trained(output)
    classifier = _served(output).pair_classifier
    assert classifier is not None
    assert classifier.class_scores == (0.0, 0.5, 1.0)
    lines = [line.split("\t") for line in classes.read_text().splitlines()]
    model = _served(output)
    first = _embed(model, [line[0] for line in lines], is_query=True)
    second = _embed(model, [line[1] for line in lines], is_query=False)
    found = classifier.logits(first, second).argmax(axis=1)
    gold = [["contradiction", "neutral", "entailment"].index(line[2]) for line in lines]
    accuracy = float((found == gold).mean())
    assert accuracy == pytest.approx(result.metrics[classes]["accuracy"], abs=1e-6)
    assert accuracy > max(np.bincount(gold)) / len(gold)


def test_siamese_with_a_softmax_over_two_classes(bases: dict[str, Path], binary: Path, tmp_path: Path):
    output = tmp_path / "model"
    options = _options(bases["bert"], binary, output, dev=binary, epochs=2)
    train_siamese(SiameseSettings(**options, head="softmax", classes="0=0.1,1=0.9"), QUIET)
    classifier = _served(output).pair_classifier
    assert classifier is not None
    assert classifier.class_scores == (0.1, 0.9)


@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean", "first-last-avg", "last2-avg"])
def test_simcse_with_every_pooling(
    bases: dict[str, Path], sentences: Path, scored: Path, tmp_path: Path, pooling: Any
):
    output = tmp_path / "model"
    options = _options(bases["bert"], sentences, output, dev=scored, epochs=1)
    result = train_simcse(SimcseSettings(**options, pooling=pooling), QUIET)
    assert -1 <= result.metrics[scored]["spearman"] <= 1
    _assert_served_as_trained(output)


@pytest.mark.parametrize("kind", KINDS)
def test_simcse_of_every_kind_keeps_two_layers_when_it_pools_them(
    bases: dict[str, Path], sentences: Path, tmp_path: Path, kind: str
):
    output = tmp_path / "model"
    options = _options(bases[kind], sentences, output, epochs=1)
    train_simcse(SimcseSettings(**options, pooling="first-last-avg"), QUIET)
    reference = _reference(output)
    features = reference.tokenize(TEXTS)
    inner: Any = reference[0].model
    known = {name: features[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        states = inner(**known, output_hidden_states=True).hidden_states
    mask = features["attention_mask"].unsqueeze(2)
    expected = torch.nn.functional.normalize((((states[1] + states[-1]) / 2) * mask).sum(1) / mask.sum(1))
    np.testing.assert_allclose(_embed(_served(output), TEXTS, is_query=False), expected.numpy(), atol=1e-5)


def test_simcse_with_hard_negatives(bases: dict[str, Path], triples: Path, scored: Path, tmp_path: Path):
    output = tmp_path / "model"
    options = _options(bases["bert"], triples, output, held_out=[scored], epochs=4)
    result = train_simcse(SimcseSettings(**options, hard_negatives=True), QUIET)
    assert result.metrics[scored]["spearman"] > 0.3
    _assert_served_as_trained(output)


def test_no_pooler_is_reported(bases: dict[str, Path], sentences: Path, tmp_path: Path):
    options = _options(bases["distilbert"], sentences, tmp_path / "model")
    with pytest.raises(InvalidInput, match="pooler needs a model with a pooler; distilbert has none"):
        train_simcse(SimcseSettings(**options, pooling="pooler"), QUIET)


@pytest.mark.parametrize("kind", KINDS)
def test_regression_trains_every_kind_of_model(
    bases: dict[str, Path], scored: Path, tmp_path: Path, kind: str
):
    output = tmp_path / "model"
    options = _options(bases[kind], scored, output, dev=scored, epochs=6, bf16=False)
    result = train_regression(RegressionSettings(**options, warm_up_pairs=0), QUIET)
    served = TorchCrossEncoder.load(output, "trained")
    lines = [line.split("\t") for line in scored.read_text().splitlines()]
    scores, _ = served.score(served.tokenize_pairs([(first, second) for first, second, _ in lines]))
    gold = np.array([float(score) for *_, score in lines])
    error = float(np.mean((scores - gold) ** 2))
    assert error == pytest.approx(result.metrics[scored]["mse"], abs=1e-4)
    # An untrained head says about 0.5 to everything.
    assert error < float(np.mean((0.5 - gold) ** 2))


def test_regression_without_sigmoid_in_the_files_own_range(
    bases: dict[str, Path], scored: Path, tmp_path: Path
):
    lines = [line.split("\t") for line in scored.read_text().splitlines()]
    wide = tmp_path / "wide.tsv"
    wide.write_text("".join(f"{a}\t{b}\t{5 * float(score):.4f}\n" for a, b, score in lines))
    output = tmp_path / "model"
    options = _options(bases["bert"], wide, output, dev=wide, epochs=6, bf16=False)
    settings = RegressionSettings(**options, warm_up_pairs=0, sigmoid=False, score_range=(0.0, 5.0))
    result = train_regression(settings, QUIET)
    served = TorchCrossEncoder.load(output, "trained")
    scores, raw = served.score(served.tokenize_pairs([(first, second) for first, second, _ in lines]))
    np.testing.assert_allclose(scores, np.clip(raw / 5, 0, 1), atol=1e-6)
    gold = np.array([float(score) for *_, score in lines])
    assert float(np.mean((raw / 5 - gold) ** 2)) == pytest.approx(result.metrics[wide]["mse"], abs=1e-4)


def test_mlm_from_a_vocabulary_alone_is_a_base_for_the_others(
    vocabulary: Path, sentences: Path, binary: Path, tmp_path: Path
):
    start = tmp_path / "start"
    common = {
        "train": [sentences],
        "dev": sentences,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "device": "cpu",
    }
    new = {"from_scratch": True, "vocab": vocabulary, "layers": 1, "hidden": 32, "heads": 2}
    result = train_mlm(MlmSettings(output=start, **common, **new, epochs=4), QUIET)
    assert result.metrics[sentences]["loss"] < np.log(17)
    longer = tmp_path / "longer"
    continued = train_mlm(MlmSettings(output=longer, base=str(start), **common, epochs=8), QUIET)
    assert continued.metrics[sentences]["loss"] < result.metrics[sentences]["loss"]
    output = tmp_path / "model"
    train_siamese(SiameseSettings(**_options(longer, binary, output)), QUIET)
    _assert_served_as_trained(output)
