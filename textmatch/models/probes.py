"""Checks a loaded model against sentence-transformers in float32, with texts alone and in company.

    probe = probe_texts(max_tokens)
    alone = np.concatenate([library_output([text]) for text in probe])
    check_agreement(embed(probe), alone, dtype, are_vectors=True)  # or Disagreement

The texts are short, of middle length, and long: longer than the model reads, if it reads 128 tokens or fewer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from textmatch.models.fast_tokenizer import Pair

# Relative, of vectors and of logits. Rounding to 16 bits changes them by less; other tokens, by far more.
_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
# More words take seconds on a CPU. `PackingCheck` covers windows and positions beyond them.
_LONGEST_WORDS = 128
_SENTENCE = "The old house by the river was sold last year. "

Outputs = NDArray[np.float32]


class Disagreement(Exception):
    """The model does not compute what sentence-transformers computes; the message says how far it is off."""


def probe_texts(max_tokens: int) -> list[str]:
    """Texts of different lengths; the longest is truncated by a model of `max_tokens` of 128 or fewer."""
    words = min(max_tokens, _LONGEST_WORDS)
    return ["a", _SENTENCE * (1 + words // 40), "Where is the key?", _SENTENCE * (1 + words // 9)]


def probe_pairs(max_tokens: int) -> list[Pair]:
    """Pairs of different lengths, with the longer text first or second."""
    short, middle, question, long = probe_texts(max_tokens)
    return [(question, _SENTENCE), (question, long), (middle, short), (short, question)]


def check_agreement(found: Outputs, expected: Outputs, dtype: str, *, are_vectors: bool) -> None:
    """Compare outputs, (count, columns), with those of sentence-transformers.

    Args:
        found: computed in company.
        expected: computed in float32, each text alone.
        dtype: the precision of `found`.
        are_vectors: whether rows are compared as vectors, in relation to their length, instead of numbers.

    Raises:
        Disagreement: they differ by more than the precision explains.
    """
    if found.shape != expected.shape:
        raise Disagreement(f"its outputs have the shape {found.shape} instead of {expected.shape}")
    if not np.isfinite(found).all():
        raise Disagreement("its outputs are not finite")
    if are_vectors:
        # A text of no known word may have the vector 0.
        lengths = np.maximum(np.linalg.norm(expected, axis=1), np.finfo(np.float32).tiny)
        errors = np.linalg.norm(found - expected, axis=1) / lengths
    else:
        errors = np.abs(found - expected).max(axis=1) / np.maximum(1.0, np.abs(expected).max(axis=1))
    if not errors.max() <= _TOLERANCES[dtype]:
        raise Disagreement(
            f"its outputs differ by {errors.max():.4f} from those of sentence-transformers in float32"
        )
