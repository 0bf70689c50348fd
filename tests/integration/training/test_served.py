"""Trained directories behind a real encoder process: what it answers is what the training code says."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sentence_transformers import SentenceTransformer

from tests.support.encoder import start_encoder
from textmatch.client import Role, Scorer, TextMatchClient
from textmatch.models.bi_encoder import feed_lstm
from textmatch.models.calibration import PairClassifier
from training.model_files import load_trained
from training.regression import RegressionSettings, train_regression
from training.siamese import SbertSettings, SiameseSettings, train_sbert, train_siamese
from training.simcse import SimcseSettings, train_simcse

TEXTS = [
    "red cat",
    "small green bird sings",
    "old",
    "large tree runs blue dog",
    "dog cat bird tree red green",
]
BI_ENCODERS = ["siamese", "towers", "sbert", "simcse-pooler", "simcse-layers", "simcse-mean", "adapter"]
TOLERANCE = 1e-3
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Served:
    """Directories by name, and a client of the process that serves them."""

    directories: dict[str, Path]
    client: TextMatchClient


@pytest.fixture(scope="module")
def directories(
    bases: dict[str, Path],
    binary: Path,
    scored: Path,
    classes: Path,
    sentences: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("trained")

    def options(name: str, kind: str, train: Path) -> dict[str, Any]:
        small = {"batch_size": 16, "max_length_tokens": 32, "learning_rate": 1e-3, "device": "cpu"}
        return {"base": str(bases[kind]), "train": [train], "output": root / name, "epochs": 2, **small}

    train_siamese(SiameseSettings(**options("siamese", "bert", binary), lstm="bilstm", lstm_width=16), QUIET)
    train_siamese(SiameseSettings(**options("towers", "bert", binary), towers="separate"), QUIET)
    train_sbert(SbertSettings(**options("sbert", "distilbert", classes)), QUIET)
    train_simcse(SimcseSettings(**options("simcse-pooler", "albert", sentences), pooling="pooler"), QUIET)
    train_simcse(
        SimcseSettings(**options("simcse-layers", "roberta", sentences), pooling="first-last-avg"), QUIET
    )
    train_simcse(SimcseSettings(**options("simcse-mean", "albert", sentences), pooling="mean"), QUIET)
    train_simcse(SimcseSettings(**options("adapter", "bert", sentences), adapter_rank=4), QUIET)
    settings = RegressionSettings(**options("regression", "bert", scored), warm_up_pairs=0, bf16=False)
    train_regression(settings, QUIET)
    return {name: root / name for name in (*BI_ENCODERS, "regression")}


@pytest.fixture(scope="module")
def served(directories: dict[str, Path]) -> Iterator[Served]:
    environment = {
        "TEXTMATCH_BI_ENCODER": ",".join(str(directories[name]) for name in BI_ENCODERS),
        "TEXTMATCH_CROSS_ENCODER": str(directories["regression"]),
        "TEXTMATCH_ENCODER_DTYPE": "float32",
        "TEXTMATCH_ENGINE": "torch",
    }
    process, address = start_encoder(environment)
    try:
        with TextMatchClient(encoder=address, timeout_seconds=60) as client:
            yield Served(directories, client)
    finally:
        process.terminate()
        _wait(process)


def _wait(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reference(directory: Path) -> SentenceTransformer:
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    feed_lstm(model)
    return model.eval()


@pytest.mark.parametrize("name", BI_ENCODERS)
def test_encode_answers_what_was_trained(served: Served, name: str):
    reference = _reference(served.directories[name])
    model = str(served.directories[name])
    queries = served.client.encode(TEXTS, role=Role.QUERY, model=model).embeddings
    documents = served.client.encode(TEXTS, role=Role.DOCUMENT, model=model).embeddings
    np.testing.assert_allclose(queries, reference.encode_query(TEXTS), atol=TOLERANCE)
    np.testing.assert_allclose(documents, reference.encode_document(TEXTS), atol=TOLERANCE)
    assert (np.abs(queries - documents).max() > 0.01) == (name == "towers")


def test_the_pair_classifier_scores_as_it_was_trained(served: Served):
    directory = served.directories["sbert"]
    reference = _reference(directory)
    query, documents = reference.encode_query(TEXTS[:1]), reference.encode_document(TEXTS)
    classifier = PairClassifier.load(directory)
    assert classifier is not None
    expected, _ = classifier.score(query, documents)
    answer = served.client.score(TEXTS[0], TEXTS, scorer=Scorer.PAIR_CLASSIFIER, model=str(directory))
    np.testing.assert_allclose(answer.scores, expected, atol=TOLERANCE)
    assert np.ptp(answer.scores) > 0.01


def test_the_cross_encoder_scores_as_it_was_trained(served: Served, bases: dict[str, Path]):
    model = load_trained(served.directories["regression"], bases["bert"], "cpu")
    expected = np.asarray(model.predict([(TEXTS[1], text) for text in TEXTS]))
    answer = served.client.score(TEXTS[1], TEXTS)
    np.testing.assert_allclose(answer.scores, expected, atol=TOLERANCE)
