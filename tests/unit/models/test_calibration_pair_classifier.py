from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from textmatch.models.calibration import PairClassifier
from textmatch.models.model_resolver import UnusableModel
from textmatch.vectors import normalise


def _classifier(dimension: int = 4) -> PairClassifier:
    """Two classes, "other" and "same": the further apart u and v are, the more "other" it is."""
    weight = np.zeros((2, 3 * dimension), dtype=np.float32)
    weight[0, 2 * dimension :] = 2.0
    return PairClassifier(weight, np.array([0.0, 1.0], dtype=np.float32), (0.0, 1.0))


def _rows(count: int, dimension: int = 4) -> np.ndarray:
    return normalise(np.random.default_rng(3).normal(size=(count, dimension)).astype(np.float32))


def test_score_is_the_probability_of_the_class_that_means_the_same():
    first, second = _rows(1), _rows(3)
    scores, raw = _classifier().score(first, second)
    distances = np.abs(first - second).sum(axis=1)
    assert scores == pytest.approx(1 / (1 + np.exp(2 * distances - 1)), abs=1e-6)
    assert raw == pytest.approx([1.0, 1.0, 1.0])
    assert scores.dtype == np.float32


def test_equal_embeddings_score_highest():
    rows = _rows(5)
    classifier = _classifier()
    same, _ = classifier.score(rows, rows)
    other, _ = classifier.score(rows, np.roll(rows, 1, axis=0))
    assert (same > other).all()


def test_three_classes_are_weighted_by_what_they_are_worth():
    weight = np.zeros((3, 12), dtype=np.float32)
    classifier = PairClassifier(weight, np.zeros(3, dtype=np.float32), (0.0, 0.5, 1.0))
    scores, _ = classifier.score(_rows(2), _rows(2))
    assert scores == pytest.approx([0.5, 0.5])


def test_large_logits_do_not_overflow():
    weight = np.full((2, 12), 1e4, dtype=np.float32)
    classifier = PairClassifier(weight, np.zeros(2, dtype=np.float32), (0.0, 1.0))
    scores, _ = classifier.score(_rows(2), _rows(2))
    assert np.isfinite(scores).all()


def test_save_and_load_give_the_same_classifier(tmp_path: Path):
    classifier = _classifier()
    classifier.save(tmp_path)
    loaded = PairClassifier.load(tmp_path)
    assert loaded is not None
    assert loaded.class_scores == classifier.class_scores
    assert (loaded.weight == classifier.weight).all()
    assert (loaded.bias == classifier.bias).all()


def test_a_model_without_one_has_none(tmp_path: Path):
    assert PairClassifier.load(tmp_path) is None


def test_files_that_contradict_each_other_are_refused(tmp_path: Path):
    directory = tmp_path / "pair_classifier"
    directory.mkdir()
    weights = {"weight": np.zeros((3, 12), dtype=np.float32), "bias": np.zeros(3, dtype=np.float32)}
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"class_scores": [0, 1]}))
    with pytest.raises(UnusableModel, match='3 classes in "weight", 2 in "class_scores"'):
        PairClassifier.load(tmp_path)
