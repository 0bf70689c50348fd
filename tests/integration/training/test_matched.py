"""Trained models in the whole stack: the matcher recalls, classifies and reranks with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sentence_transformers import SentenceTransformer

from tests.support.stack import running_stack
from textmatch.client import MatchResult, Rerank
from textmatch.models.bi_encoder import feed_lstm
from textmatch.models.calibration import PairClassifier
from training.model_files import load_trained
from training.regression import RegressionSettings, train_regression
from training.siamese import SbertSettings, SiameseSettings, train_sbert, train_siamese
from training.simcse import SimcseSettings, train_simcse

DOCUMENTS = ["red cat sings", "small green bird", "old tree", "large blue dog runs", "bird sings"]
QUERY = "small bird sings"
TOLERANCE = 1e-3
QUIET = Console(quiet=True)
RERANK_OF = {
    "siamese": Rerank.CROSS_ENCODER,
    "simcse": Rerank.CROSS_ENCODER,
    "sbert": Rerank.CASCADE,
}


def _matched(root: Path, bi_encoder: Path, cross_encoder: Path, rerank: Rerank) -> MatchResult:
    environment = {
        "TEXTMATCH_BI_ENCODER": str(bi_encoder),
        "TEXTMATCH_CROSS_ENCODER": str(cross_encoder),
        "TEXTMATCH_ENCODER_DTYPE": "float32",
        "TEXTMATCH_ENGINE": "torch",
        "OMP_NUM_THREADS": "1",
    }
    with running_stack(root, environment) as stack, stack.client(timeout_seconds=60) as client:
        documents = [{"id": text, "text": text} for text in DOCUMENTS]
        assert client.ingest_all(documents, wait=True).accepted == len(documents)
        # Fewer than there are documents: else a cascade has no need of its first stage.
        top_k = 3 if rerank is Rerank.CASCADE else len(DOCUMENTS)
        return client.match(QUERY, top_k=top_k, rerank=rerank, rerank_depth=top_k, explain=True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["siamese", "simcse", "sbert"])
def test_the_matcher_uses_trained_models(
    bases: dict[str, Path],
    binary: Path,
    classes: Path,
    scored: Path,
    sentences: Path,
    tmp_path: Path,
    recipe: str,
):
    def options(name: str, train: Path) -> dict[str, Any]:
        small = {"batch_size": 16, "max_length_tokens": 32, "learning_rate": 1e-3, "device": "cpu"}
        return {"base": str(bases["bert"]), "train": [train], "output": tmp_path / name, **small}

    directory = tmp_path / recipe
    if recipe == "siamese":
        settings = SiameseSettings(**options(recipe, binary), towers="separate", lstm="bilstm", lstm_width=16)
        train_siamese(settings, QUIET)
    elif recipe == "simcse":
        train_simcse(SimcseSettings(**options(recipe, sentences), pooling="first-last-avg"), QUIET)
    else:
        train_sbert(SbertSettings(**options(recipe, classes)), QUIET)
    train_regression(RegressionSettings(**options("regression", scored), warm_up_pairs=0, bf16=False), QUIET)
    result = _matched(tmp_path / "stack", directory, tmp_path / "regression", RERANK_OF[recipe])

    texts = [match.document.text for match in result]
    explained = [match.explanation for match in result if match.explanation]
    assert len(set(texts)) == len(explained) == (3 if recipe == "sbert" else len(DOCUMENTS))
    reference = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    feed_lstm(reference)
    query, documents = reference.eval().encode_query([QUERY]), reference.encode_document(texts)
    cosines = [explanation.cosine for explanation in explained]
    np.testing.assert_allclose(cosines, (query @ documents.T)[0], atol=TOLERANCE)
    model = load_trained(tmp_path / "regression", bases["bert"], "cpu")
    expected = model.predict([(QUERY, text) for text in texts])
    found = np.array([match.rerank_score for match in result], dtype=np.float32)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    if recipe == "sbert":
        classifier = PairClassifier.load(directory)
        assert classifier is not None
        classified = np.array([explanation.pair_classifier_score for explanation in explained], np.float32)
        np.testing.assert_allclose(classified, classifier.score(query, documents)[0], atol=TOLERANCE)
