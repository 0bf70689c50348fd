"""Detects a collapsed model: one that gives nearly the same score to every pair of texts.

score_spread(scores).problem  # "all 81 scores are 0.9999 to 1.0000", or "" if the model is usable

Training checks a sample of its pairs with it, and the encoder checks `PROBES` when it loads a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# By language: texts of which no two mean the same, with different lengths and words. No model that reads the
# language gives nearly equal scores to all pairs of them, a text with itself included.
PROBES: Mapping[str, Sequence[str]] = {
    "en": (
        "A cat is sleeping on the sofa.",
        "How do I delete a folder with everything in it?",
        "The invoice was paid twice by mistake.",
        "Heavy rain is expected in the mountains tomorrow morning.",
        "hard disk failure",
    ),
    "zh": (
        "猫在沙发上睡觉。",
        "如何删除一个文件夹以及里面的所有内容？",
        "这张发票被误付了两次。",
        "预计明天上午山区有大雨。",
        "硬盘故障",
    ),
}

# Cosines and scores in 0..1 alike: differences below this rank nothing reliably.
_MIN_SPREAD = 1e-3
# Saturated scores, such as 0 and 1 alone, have an equal number of values however many pairs there are.
_MIN_DISTINCT_SHARE = 0.05
_MIN_SCORES_FOR_SHARE = 50
_DECIMALS = 6


@dataclass(frozen=True)
class ScoreSpread:
    """How much the scores of many pairs differ: the largest minus the smallest, and the distinct share.

    `problem` says why such scores are useless; "" if they are not.
    """

    spread: float
    distinct_share: float
    problem: str


def score_spread(scores: ArrayLike) -> ScoreSpread:
    """The spread of scores of any shape, 0 if there are fewer than two. NaN and infinity are a problem."""
    values = np.asarray(scores, dtype=np.float64).ravel()
    if not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        return ScoreSpread(0.0, 0.0, f"{count} of {len(values)} scores are not finite numbers")
    if len(values) < 2:
        return ScoreSpread(0.0, 1.0, "")
    lowest, highest = float(values.min()), float(values.max())
    distinct_share = len(np.unique(values.round(_DECIMALS))) / len(values)
    problem = ""
    if highest - lowest < _MIN_SPREAD:
        problem = f"all {len(values)} scores are {lowest:.4f} to {highest:.4f}"
    elif len(values) >= _MIN_SCORES_FOR_SHARE and distinct_share < _MIN_DISTINCT_SHARE:
        problem = f"{len(values)} scores have only {round(distinct_share * len(values))} different values"
    return ScoreSpread(highest - lowest, distinct_share, problem)
