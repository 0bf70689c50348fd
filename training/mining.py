"""Warm-up pairs: mined from plain sentences and labelled by a bi-encoder, so that they cost no annotation.

A bi-encoder's weights have never seen two sentences in one sequence. Learning to reproduce the bi-encoder's
own cosine on many pairs teaches them to compare, before the few gold scores say what similarity is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import util

from training.pairs import ScoredPair

NEIGHBOURS_PER_SENTENCE = 48
RANDOM_PARTNERS_PER_SENTENCE = 16
# Pairs are taken evenly from this many equal slices of the cosine range 0..1.
COSINE_SLICES = 20


def mine_warm_up_pairs(
    sentences: Sequence[str], embeddings: NDArray[np.float32], count: int, seed: int
) -> list[ScoredPair]:
    """At most `count` distinct pairs, spread evenly over the cosine range, in random order and orientation.

    `embeddings` (sentence, dimension) holds one L2-normalised row per sentence. The label is the cosine, with
    negative values raised to 0. Fewer pairs come back only if the sentences do not have that many.
    """
    random = np.random.default_rng(seed)
    candidates = _candidate_pairs(embeddings, random)  # (pair, 2)
    cosines = (embeddings[candidates[:, 0]] * embeddings[candidates[:, 1]]).sum(axis=1).clip(0.0, 1.0)
    chosen = _spread_evenly(cosines, count, random)
    flipped = random.random(len(chosen)) < 0.5
    return [
        ScoredPair(sentences[second], sentences[first], float(cosine))
        if is_flipped
        else ScoredPair(sentences[first], sentences[second], float(cosine))
        for (first, second), cosine, is_flipped in zip(
            candidates[chosen].tolist(), cosines[chosen], flipped, strict=True
        )
    ]


def _candidate_pairs(embeddings: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.int64]:
    """Nearest neighbours for the upper end of the cosine range, random partners for the lower: (pair, 2)."""
    count = len(embeddings)
    rows = torch.from_numpy(embeddings)
    hits = util.semantic_search(rows, rows, top_k=min(NEIGHBOURS_PER_SENTENCE + 1, count))
    near = [(sentence, int(hit["corpus_id"])) for sentence, found in enumerate(hits) for hit in found]
    sentence_ids = np.repeat(np.arange(count), RANDOM_PARTNERS_PER_SENTENCE)
    far = np.stack([sentence_ids, random.integers(0, count, len(sentence_ids))], axis=1)
    pairs = np.sort(np.concatenate([np.array(near, dtype=np.int64).reshape(-1, 2), far]), axis=1)
    distinct: NDArray[np.int64] = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return distinct


def _spread_evenly(
    cosines: NDArray[np.float32], count: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Positions of at most `count` values, as evenly over the slices of 0..1 as they allow, shuffled."""
    slice_of = np.minimum((cosines * COSINE_SLICES).astype(np.int64), COSINE_SLICES - 1)
    slices = sorted((np.flatnonzero(slice_of == number) for number in range(COSINE_SLICES)), key=len)
    chosen: list[NDArray[np.int64]] = []
    left = count
    # The smallest slice comes first: what it cannot fill goes to the larger ones.
    for position, members in enumerate(slices):
        share = min(len(members), left // (len(slices) - position))
        chosen.append(random.choice(members, share, replace=False))
        left -= share
    return random.permutation(np.concatenate(chosen))
