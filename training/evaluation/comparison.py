"""How well scores agree with gold scores, for a cross-encoder and for the cosine of a bi-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import CrossEncoder, SentenceTransformer

from training.pairs import ScoredPair, read_scored_pairs

BATCH_SIZE = 64


@dataclass(frozen=True)
class Agreement:
    """Correlation and mean squared error between scores and gold scores over `pair_count` pairs.

    A correlation is NaN where either side is constant.
    """

    spearman: float
    pearson: float
    mse: float
    pair_count: int


@dataclass(frozen=True)
class Comparison:
    """A cross-encoder beside the cosine of its base bi-encoder, on one file of pairs."""

    path: Path
    cross_encoder: Agreement
    cosine: Agreement


def compare(cross_encoder: CrossEncoder, bi_encoder: SentenceTransformer, path: Path) -> Comparison:
    """Measures both on the pairs in `path`."""
    pairs = read_scored_pairs(path)
    return Comparison(
        path=path,
        cross_encoder=agreement(cross_encoder_scores(cross_encoder, pairs), pairs),
        cosine=agreement(cosine_scores(bi_encoder, pairs), pairs),
    )


def agreement(scores: NDArray[np.float32], pairs: Sequence[ScoredPair]) -> Agreement:
    """Compares `scores` (pair,) with the pairs' gold scores."""
    gold = np.array([pair.score for pair in pairs])  # (pair,)
    is_comparable = np.ptp(scores) > 0 and np.ptp(gold) > 0
    return Agreement(
        spearman=float(spearmanr(scores, gold).statistic) if is_comparable else float("nan"),
        pearson=float(pearsonr(scores, gold).statistic) if is_comparable else float("nan"),
        mse=float(np.mean((scores - gold) ** 2)),
        pair_count=len(pairs),
    )


def cross_encoder_scores(model: CrossEncoder, pairs: Sequence[ScoredPair]) -> NDArray[np.float32]:
    """The model's scores, aligned with `pairs`: (pair,)."""
    texts = [(pair.first, pair.second) for pair in pairs]
    return np.asarray(model.predict(texts, batch_size=BATCH_SIZE, show_progress_bar=False), dtype=np.float32)


def cosine_scores(model: SentenceTransformer, pairs: Sequence[ScoredPair]) -> NDArray[np.float32]:
    """The cosines of the two sentences' embeddings, aligned with `pairs`: (pair,)."""
    first = embed(model, [pair.first for pair in pairs])  # (pair, dimension)
    second = embed(model, [pair.second for pair in pairs])  # (pair, dimension)
    cosines: NDArray[np.float32] = (first * second).sum(axis=1)
    return cosines


def embed(model: SentenceTransformer, sentences: Sequence[str]) -> NDArray[np.float32]:
    """L2-normalised embeddings: (sentence, dimension)."""
    embeddings = model.encode(
        list(sentences), batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False
    )
    return np.asarray(embeddings, dtype=np.float32)
