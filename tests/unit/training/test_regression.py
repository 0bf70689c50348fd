from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.regression import mine_warm_up_pairs

SENTENCES = [f"sentence {number}" for number in range(400)]


@pytest.fixture(scope="module")
def embeddings() -> NDArray[np.float32]:
    """Unit vectors in a few loose clusters, with cosines in the whole range: (sentence, 8)."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(12, 8))
    spread = random.uniform(0.05, 1.5, size=(len(SENTENCES), 1))
    rows = centres[random.integers(0, 12, len(SENTENCES))] + spread * random.normal(size=(len(SENTENCES), 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_labels_are_the_cosines_raised_to_zero(embeddings: NDArray[np.float32]) -> None:
    position = {sentence: number for number, sentence in enumerate(SENTENCES)}
    pairs = mine_warm_up_pairs(SENTENCES, embeddings, 500, seed=1)
    for pair in pairs:
        cosine = float(embeddings[position[pair.first]] @ embeddings[position[pair.second]])
        assert pair.score == pytest.approx(max(cosine, 0.0), abs=1e-6)


def test_pairs_are_distinct_and_never_a_sentence_with_itself(embeddings: NDArray[np.float32]) -> None:
    pairs = mine_warm_up_pairs(SENTENCES, embeddings, 1000, seed=1)
    unordered = {frozenset((pair.first, pair.second)) for pair in pairs}
    assert len(pairs) == len(unordered) == 1000
    assert all(len(pair) == 2 for pair in unordered)


def test_labels_are_spread_over_the_range(embeddings: NDArray[np.float32]) -> None:
    scores = [pair.score for pair in mine_warm_up_pairs(SENTENCES, embeddings, 1000, seed=1)]
    counts, _ = np.histogram(scores, bins=5, range=(0.0, 1.0))
    assert counts.min() >= 0.5 * counts.mean()


def test_order_carries_no_information(embeddings: NDArray[np.float32]) -> None:
    scores = np.array([pair.score for pair in mine_warm_up_pairs(SENTENCES, embeddings, 1000, seed=1)])
    assert abs(np.corrcoef(scores, np.arange(len(scores)))[0, 1]) < 0.1


def test_the_seed_decides(embeddings: NDArray[np.float32]) -> None:
    first = mine_warm_up_pairs(SENTENCES, embeddings, 100, seed=1)
    assert first == mine_warm_up_pairs(SENTENCES, embeddings, 100, seed=1)
    assert first != mine_warm_up_pairs(SENTENCES, embeddings, 100, seed=2)


def test_few_sentences_give_all_their_pairs() -> None:
    pairs = mine_warm_up_pairs(["a", "b", "c"], np.eye(3, dtype=np.float32), 50, seed=1)
    assert {frozenset((pair.first, pair.second)) for pair in pairs} == {
        frozenset("ab"),
        frozenset("ac"),
        frozenset("bc"),
    }
